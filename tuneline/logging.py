"""One logger for all: the main process speaks, one line an event, with numbers."""

import logging
import os


def get_logger(name: str) -> logging.Logger:
    """A standard logger that only the first process of a launch (rank 0) writes to."""
    logger = logging.getLogger(name)
    if not any(isinstance(f, _MainProcessOnly) for f in logger.filters):
        logger.addFilter(_MainProcessOnly())
    return logger


class _MainProcessOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return int(os.environ.get("RANK", "0")) == 0
