import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from stages import launch
from stages.costs import Cost, held_gpus, noted_cost, price, read_costs
from stages.schema import Launch
from stages.schema_costs import CostsSection
from tasks.report import write_report
from tasks.report_costs import read_run_costs
from tasks.summary import RunSummary, StageSummary
from tests.report.page import Page

WORK = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def test_a_try_notes_its_time_and_that_of_its_processes(tmp_path):
    with noted_cost(tmp_path, "abc", 2) as this_try:
        subprocess.run([sys.executable, "-c", WORK], check=True)
        this_try.exit_code = 0
    (cost,) = read_costs(tmp_path)
    assert cost.identity == "abc"
    assert cost.exit_code == 0
    assert 0.3 <= cost.processor_seconds <= cost.wall_seconds + 1
    assert cost.gpu_seconds == 2 * cost.wall_seconds
    assert cost.peak_memory > 2**20
    assert abs(cost.ended - time.time()) < 60


def test_a_try_that_is_stopped_is_noted_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), noted_cost(tmp_path, "abc", 0):
        raise KeyboardInterrupt
    assert [cost.exit_code for cost in read_costs(tmp_path)] == [None]


def test_a_line_that_was_cut_off_is_passed_over(tmp_path):
    with noted_cost(tmp_path, "abc", 0):
        pass
    with (tmp_path / "costs.jsonl").open("a") as file:
        file.write('{"identity": "d')
    assert [cost.identity for cost in read_costs(tmp_path)] == ["abc"]
    assert read_costs(tmp_path / "nowhere") == []


def test_a_stage_holds_the_gpus_that_it_takes_as_far_as_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert launch.gpus_of_machine() == 2
    assert held_gpus(Launch(num_processes=4), tmp_path) == 2
    assert held_gpus(Launch(num_processes=1), tmp_path) == 1
    assert held_gpus(None, tmp_path) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert held_gpus(Launch(num_processes=4), tmp_path) == 0


@pytest.mark.slow
def test_a_stage_that_ran_has_noted_what_it_took(checkout_after_prepare):
    (cost,) = read_costs(checkout_after_prepare.root / ".work" / "prepare")
    assert (cost.exit_code, cost.num_gpus) == (0, 0)
    assert cost.identity == checkout_after_prepare.work("prepare").name
    assert cost.processor_seconds > 0.5


def test_prices_are_of_hours_and_of_gpu_hours():
    assert price(CostsSection(), 3600, 3600) is None
    assert price(CostsSection(per_hour=1.5), 1800, 0) == 0.75
    assert price(CostsSection(per_hour=1.0, per_gpu_hour=2.0), 3600, 8 * 3600) == 17.0


@pytest.fixture
def run(tmp_path):
    """Two stages: one that ran in this run at its second try, one that an earlier run has made."""
    now = datetime.now(UTC)
    started = now - timedelta(minutes=10)
    tries = {
        "sft": [
            Cost("a", now.timestamp(), 60.0, 100.0, 1, 2**30, 1),
            Cost("a", now.timestamp(), 120.0, 200.0, 1, 1, 0),
        ],
        "dpo": [Cost("b", started.timestamp() - 60, 30.0, 40.0, 0, 2**20, 0)],
    }
    for stage, costs in tries.items():
        folder = tmp_path / ".work" / stage
        folder.mkdir(parents=True)
        (folder / "costs.jsonl").write_text("".join(json.dumps(vars(cost)) + os.linesep for cost in costs))
    metrics = tmp_path / "reports" / "sft" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"train/num_tokens": 1234567}')
    stages = StageSummary("sft", "ran", 190.0), StageSummary("dpo", "cached", 0.0)
    return RunSummary("line", {"costs": {"per_gpu_hour": 3.6, "currency": "EUR"}}, stages, started, now)


def test_a_run_is_told_apart_from_all_that_was_needed(tmp_path, run):
    costs = read_run_costs(tmp_path, run)
    sft, dpo = costs.stages
    assert (sft.run.num_tries, sft.run.processor, sft.run.gpu, sft.num_tokens) == (2, 300.0, 180.0, 1234567)
    assert (dpo.run.num_tries, dpo.made.num_tries, dpo.made.processor) == (0, 1, 40.0)
    assert costs.run.price == pytest.approx(0.18)
    assert costs.made.wall == 210.0


def test_the_report_shows_prices_only_where_they_are_configured(tmp_path, run):
    page = Page(write_report(tmp_path, run).read_text())
    for part in ("EUR 0.18", "1,234,567", "5:00", "0.050", "1.0 GiB"):
        assert part in page.text, part
    (tmp_path / "plain").mkdir()
    plain = RunSummary("line", {}, run.stages, run.started, run.finished)
    text = Page(write_report(tmp_path / "plain", plain).read_text()).text
    assert "costs.per_hour" in text
    assert "USD" not in text
