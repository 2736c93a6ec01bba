import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tasks import report_index
from tasks.report_index import keep_run, read_runs, write_index
from tasks.summary import RunSummary, StageSummary
from tests.report.page import HOSTILE, Page, assert_harmless
from tuneline.errors import TunelineError


@pytest.fixture
def runs(tmp_path):
    """Three runs that were kept; the report of each is a stub."""
    started = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    stages = StageSummary("sft", "cached", 0.0), StageSummary("evaluate", "ran", 9.0, {"dpo/accuracy": 0.875})
    first = RunSummary(f"quickstart{HOSTILE}", {}, stages, started, started + timedelta(minutes=3))
    (tmp_path / "reports").mkdir()
    failed = replace(first, stages=(StageSummary("sft", "failed", 1.0),), started=first.started + timedelta(days=1))
    last = replace(first, name="other", started=first.started + timedelta(days=2))
    for i, run in enumerate((first, failed, last)):
        (tmp_path / "reports" / "report.html").unlink(missing_ok=True)
        (tmp_path / "reports" / "report.html").write_text(f"report {i}")
        keep_run(tmp_path, run)
    return tmp_path


def test_a_page_lists_runs_with_their_reports(runs):
    page = Page(write_index(runs).read_text())
    assert_harmless(page)
    links = [a["href"] for a in page.all("a")]
    assert [(runs / "reports" / link).read_text() for link in links] == ["report 2", "report 1", "report 0"]
    for part in ("3 runs", "2026-01-04 03:04", "failed in sft", HOSTILE, "1 of 2", "0.875"):
        assert part in page.text, part


def test_the_oldest_runs_go(runs, monkeypatch):
    monkeypatch.setattr(report_index, "NUM_KEPT", 2)
    keep_run(runs, read_runs(runs)[0].run)
    assert read_runs(runs)[0].run.name == "other"
    assert len(read_runs(runs)) == 2


def test_a_record_that_cannot_be_read_is_passed_over(runs, caplog):
    next((runs / "reports" / "runs").glob("*/run.json")).write_text("{")
    with caplog.at_level(logging.WARNING):
        assert len(read_runs(runs)) == 2
    assert "cannot be read" in caplog.text


def test_no_runs_is_an_error(tmp_path):
    with pytest.raises(TunelineError, match="has no run yet"):
        write_index(tmp_path)
