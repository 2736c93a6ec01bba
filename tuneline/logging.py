"""One logger for all: main process only, one line an event."""

from accelerate.logging import MultiProcessAdapter, get_logger

__all__ = ["MultiProcessAdapter", "get_logger"]
