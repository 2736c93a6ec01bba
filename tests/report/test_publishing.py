"""What a real run leaves: the report as a file, in MLflow and in Prefect, whether the run went well or not."""

import json
import re
import signal
import sqlite3
import time
from pathlib import Path

import mlflow
import pytest

from tasks.report_index import read_runs
from tests.flows.checkouts import CHANGE_DPO
from tests.report.page import Page

# Python 3.11's ast, used by a dependency of MLflow, and SQLite connections that MLflow leaves to the collector.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


def newest_summary(checkout):
    """The Markdown artifact of the last flow run, as Prefect's database has it."""
    database = sqlite3.connect(Path(checkout.env["PREFECT_HOME"]) / "prefect.db")
    query = "select data from artifact where key = 'report-toy' and type = 'markdown' order by created desc limit 1"
    ((data,),) = database.execute(query).fetchall()
    database.close()
    return json.loads(data)


def artifacts_of_pipeline(checkout):
    client = mlflow.MlflowClient(f"sqlite:///{checkout.path / 'mlflow.db'}")
    runs = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], "tags.`tuneline.kind` = 'pipeline'"
    )
    uri = runs[0].info.artifact_uri.removeprefix("file://")
    return [path.name for path in Path(uri).iterdir()]


def test_a_failed_run_leaves_its_report_everywhere(checkout):
    checkout.order("dpo", "1")
    checkout.call("run", "toy.yaml", *CHANGE_DPO, "--retries", "0", exit_code=1)
    page = Page((checkout.path / "reports" / "report.html").read_text())
    again = "tuneline run toy.yaml --set dpo.launch.timeout_hours=2"
    for part in ("failed in dpo", "dpo: the toy breaks here", again):
        assert part in page.text, part
    assert artifacts_of_pipeline(checkout) == ["report.html"]
    summary = newest_summary(checkout)
    assert "## toy: failed in dpo" in summary
    assert f"Go on with `{again}`" in summary
    markdown = checkout.call("report", "--markdown")
    assert markdown.startswith("## toy: failed in dpo")
    assert markdown.partition("**dpo")[2] == summary.partition("**dpo")[2]
    listed = checkout.call("report", "--all").strip()
    assert listed.endswith("reports/index.html")
    assert "failed in dpo" in Page(Path(listed).read_text()).text
    assert "--against goes with --markdown" in checkout.call("report", "--against", "HEAD", exit_code=2)


def test_a_stopped_run_leaves_a_report_too(checkout):
    checkout.order("dpo", "hang")
    process = checkout.start("run", "toy.yaml", *CHANGE_DPO)
    limit = time.monotonic() + 120
    while len(checkout.processes()) < 5:  # the run, Prefect's server, dvc, the stage, and its child
        assert time.monotonic() < limit
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    text = Page((checkout.path / "reports" / "report.html").read_text()).text
    assert "stopped in dpo" in text
    assert re.search("What stopped it: a signal", text)
    (kept,) = read_runs(checkout.path)
    assert [stage.state for stage in kept.run.stages if stage.name in ("dpo", "evaluate")] == ["stopped", "not started"]
    assert kept.run.stages[3].seconds > 0
