"""The HTML report at the end of a run. One that cannot be written costs no result: it is said."""

from pathlib import Path

from tasks.display import display
from tasks.summary import RunSummary
from tuneline.logging import get_logger

logger = get_logger(__name__)

REPORT = Path("reports/report.html")


def try_to_write_report(root: Path, run: RunSummary) -> Path | None:
    """The report's path, or None when it could not be written."""
    try:
        from tasks.report import write_report

        return write_report(root, run)
    except Exception as error:
        logger.warning("no report was written", exc_info=True)
        display.say(f"No report was written ({type(error).__name__}: {error}); try `tuneline report`.", "yellow")
        return None
