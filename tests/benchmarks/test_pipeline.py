"""The benchmark of orchestration: what it prints, what it fills the stores with, and that it measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from rich.console import Console

from benchmarks.pipeline import Costs, is_within, main, measure, table_of
from benchmarks.pipeline_fill import fill_mlflow
from stages.loading import load_config
from tuneline.errors import ConfigError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


def costs(num_past_runs=0, **changes):
    values = dict(overhead={"sft": 2.0, "dpo": 2.5}, own={"sft": 8.0, "dpo": 9.0}, around=4.0, nothing=1.5)
    values |= dict(nothing_on_server=5.0, load=0.5)
    return Costs(num_past_runs, **{**values, **changes})


def test_the_table_has_a_row_a_stage_and_a_column_a_measurement():
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - lives as long as the test
    console.print(table_of([costs(), costs(500, nothing=11.0)]))
    console.file.close()
    shown = console.export_text()
    assert "0 past runs" in shown
    assert "500 past runs" in shown
    rows = {line.split("│")[1].strip(): line for line in shown.splitlines() if "│" in line}
    assert [cell.strip() for cell in rows["overhead of dpo"].split("│")[2:5]] == ["2.50", "2.50", "3"]
    assert [cell.strip() for cell in rows["a run with nothing to do"].split("│")[2:5]] == ["1.50", "11.00", "10"]


def test_what_is_promised_holds_for_every_stage_and_both_ways_of_doing_nothing():
    assert is_within([costs(), costs(500)])
    assert not is_within([costs(), costs(500, overhead={"sft": 3.1})])
    assert not is_within([costs(nothing_on_server=10.5)])


def test_a_number_of_past_runs_is_one_at_least():
    with pytest.raises(ConfigError, match="at least 1"):
        main(["--past-runs", "0"], Console())


def test_the_line_that_is_measured_is_a_valid_one_with_five_stages():
    config = load_config(ROOT / "benchmarks" / "pipeline.yaml", root=ROOT)
    assert [stage for stage in ("prepare", "sft", "reward", "dpo", "evaluate") if config.why_off(stage) is None] == [
        *("prepare", "sft", "reward", "dpo", "evaluate")
    ]


def test_a_past_run_is_a_parent_with_stages_metrics_and_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fill_mlflow(1, "past", ["prepare", "sft", "dpo"])
    fill_mlflow(1, "past", ["prepare", "sft", "dpo"])  # there are models of these names by now
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("past").experiment_id])
    assert len(runs) == 2 * (1 + 3)
    assert sum("mlflow.parentRunId" in run.data.tags for run in runs) == 6
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(client.search_model_versions("name = 'past-dpo'")) == 2


@pytest.mark.slow
def test_overheads_of_every_stage_are_measured_with_and_without_past_runs(tmp_path):
    found = measure(tmp_path, 2, print)
    assert [cost.num_past_runs for cost in found] == [0, 2]
    for cost in found:
        assert list(cost.overhead) == ["prepare", "sft", "reward", "dpo", "evaluate"]
        assert all(seconds > 0 for seconds in cost.own.values())
        assert cost.nothing > 0
        assert cost.nothing_on_server > 0
    database = tmp_path / "prefect" / "prefect.db"
    query = (
        "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('select count(*) from flow_run').fetchone())"
    )
    shown = subprocess.run([sys.executable, "-c", query, database], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown.replace("(", "[").replace(",)", "]")) == [2 + 2 * 2]  # past ones; a run and one of nothing
