"""The report at the end of a run: as a file, among the runs that are kept, and in Prefect. MLflow gets it with the run.

One that cannot be written costs no result: it is said.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tasks.display import display
from tasks.summary import RunSummary
from tuneline.logging import get_logger

logger = get_logger(__name__)

REPORT = Path("reports/report.html")


def try_to_write_report(root: Path, run: RunSummary) -> Path | None:
    """The report's path, or None when it could not be written."""
    try:
        from tasks.report import write_report
        from tasks.report_index import keep_run

        path = write_report(root, run)
        keep_run(root, run)
    except Exception as error:
        logger.warning("no report was written", exc_info=True)
        display.say(f"No report was written ({type(error).__name__}: {error}); try `tuneline report`.", "yellow")
        return None
    if not run.stopped:  # then Prefect's server may be ending too, and its client would wait for it
        _tell_prefect(root, run)
    return path


def _tell_prefect(root: Path, run: RunSummary) -> None:
    """The summary as a Markdown artifact of the flow run, and a link where MLflow serves the report."""
    try:
        from prefect.artifacts import create_link_artifact, create_markdown_artifact
        from prefect.context import FlowRunContext

        from tasks.report_markdown import write_markdown

        if FlowRunContext.get() is None:
            return
        key = f"report-{re.sub(r'[^a-z0-9]+', '-', run.name.lower()).strip('-')}"
        link = _mlflow_link(run)
        told = f"The whole report: {f'[report.html]({link})' if link else f'`{REPORT}` in the checkout'}\n\n"
        create_markdown_artifact(told + write_markdown(root, run), key=key, description="What the run came to")
        if link:
            create_link_artifact(link, link_text="report.html", key=f"{key}-file", description="The report in MLflow")
    except Exception as error:  # a server may fail in any way, and the report is written
        logger.warning("Prefect has no summary of the report: %s: %s", type(error).__name__, error)


def _mlflow_link(run: RunSummary) -> str:
    """Where MLflow's UI shows the report; empty where no server does."""
    server = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if server.scheme not in ("http", "https") or not run.parent_run:
        return ""
    from stages.mlflow_store import connect

    experiment = connect().get_run(run.parent_run).info.experiment_id
    place = server.netloc.rpartition("@")[2]  # without a password
    page = f"/experiments/{experiment}/runs/{run.parent_run}/artifacts/report.html"
    return urlunsplit((server.scheme, place, f"{server.path.rstrip('/')}/", "", page))
