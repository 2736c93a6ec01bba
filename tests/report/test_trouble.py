"""Runs that failed or were stopped have a report that says what was told, and how to go on."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tasks.again import command_to_go_on
from tasks.report import write_report
from tasks.report_outcome import outcome
from tasks.summary import RunSummary, StageSummary
from tests.evaluation.checkout import make_checkout
from tests.report.page import HOSTILE, Page, assert_harmless

NOW = datetime.now(UTC)


def run_with(*stages, **more):
    return RunSummary("line", {}, stages, NOW - timedelta(minutes=3), NOW, **more)


@pytest.fixture
def failed(tmp_path):
    log = tmp_path / ".work" / "sft" / "0123" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {i} {HOSTILE}\n" for i in range(300)))
    error = f"Stage sft failed (exit code 1). The end of its log:\n  | \ud800 RuntimeError: {HOSTILE}"
    stages = StageSummary("prepare", "ran", 4.0), StageSummary("sft", "failed", 9.0, error=error)
    return run_with(*stages, StageSummary("dpo", "not started", 0.0), again="tuneline run configs/line.yaml --set a=1")


def test_a_failed_run_says_what_failed_and_how_to_go_on(tmp_path, failed):
    page = Page(write_report(tmp_path, failed).read_text())
    for part in (
        *("failed in sft", "sft failed", "RuntimeError", "line 299", ".work/sft/0123/log.txt"),
        *("How to go on", "tuneline run configs/line.yaml --set a=1", "not started"),
    ):
        assert part in " ".join(page.text.split()), part
    assert "line 99 " not in page.text
    assert "100 lines of logs" in page.text  # left out, and counted
    assert HOSTILE in page.text
    assert_harmless(page)


def test_a_stopped_run_says_by_what(tmp_path):
    run = run_with(StageSummary("sft", "stopped", 9.0), stopped="a signal (Ctrl-C)", again="tuneline run x.yaml")
    page = Page(write_report(tmp_path, run).read_text())
    for part in ("stopped in sft", "a signal (Ctrl-C)", "It has left no log", "tuneline run x.yaml"):
        assert part in page.text, part


def test_a_log_of_an_earlier_run_is_not_shown(tmp_path, failed):
    later = replace(failed, started=NOW + timedelta(hours=1), finished=NOW + timedelta(hours=2))
    assert "line 299" not in Page(write_report(tmp_path, later).read_text()).text


def test_what_an_earlier_run_has_left_is_named_so(tmp_path):
    whole = make_checkout(tmp_path)
    stages = [s if s.name != "evaluate" else replace(s, state="not started", metrics={}) for s in whole.stages]
    stages = tuple(replace(s, state="failed") if s.name == "grpo" else s for s in stages)
    text = Page(write_report(tmp_path, replace(whole, stages=stages)).read_text()).text
    assert "evaluate, grpo did not come to an end in this run" in text
    assert "grpo (of an earlier run)" in text
    assert "dpo (of an earlier run)" not in text
    assert text.count("Of an earlier run: evaluate did not come to an end") == 3
    assert "sft: accuracy" not in text  # the first thing that a reader sees


def test_outcomes_in_a_few_words():
    ran, cached = StageSummary("sft", "ran", 1.0), StageSummary("sft", "cached", 0.0)
    assert outcome(run_with(ran)) == "finished"
    assert outcome(run_with(cached)) == "nothing had to be computed again"
    assert outcome(run_with(ran, stopped="a signal")) == "stopped"


def test_the_command_that_goes_on():
    assert command_to_go_on("a b.yaml", ["x=[1, 2]"], None) == "tuneline run 'a b.yaml' --set 'x=[1, 2]'"
    assert command_to_go_on(None, [], ["dpo"]) == "tuneline stage dpo"
    assert command_to_go_on(None, [], None) == ""
