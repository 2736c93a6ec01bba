"""`tuneline sweep` as a user types it: real Prefect, DVC, git and MLflow, toys as stages."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import mlflow
import psutil
import pytest

from tests.flows.checkouts import Checkout

# Python 3.11's ast, used by a dependency of MLflow, and SQLite connections that MLflow leaves to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

SWEEP = ("sweep", "toy.yaml", "--set", "dpo.launch.timeout_hours=2,3", "--set", "seed=0,1", "--retries", "0")
NAMES = [f"toy-timeout_hours-{hours}-seed-{seed}" for hours in (2, 3) for seed in (0, 1)]


def events(line: Checkout, kind: str) -> Counter[str]:
    """How often each stage began or ended, by its name and what it depends on."""
    log = Path(line.env["SWEEP_LOG"])
    found: Counter[str] = Counter()
    for text in log.read_text().splitlines() if log.is_file() else ():
        stage, what, seed, hours = text.split()
        if what == kind:
            found[f"{stage} {seed}" + (f" {float(hours):g}" if stage == "dpo" else "")] += 1
    return found


ONCE = {f"{stage} {seed}": 1 for stage in ("prepare", "sft") for seed in (0, 1)}
ONCE |= {f"dpo {seed} {hours}": 1 for seed in (0, 1) for hours in (2, 3)}


def dvc(line: Checkout, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=line.path, env=line.env, check=True, capture_output=True, text=True).stdout


def experiments(line: Checkout) -> dict[str, dict[str, str]]:
    rows = csv.DictReader(io.StringIO(dvc(line, "exp", "show", "--csv")))
    return {row["Experiment"]: row for row in rows if row["Experiment"]}


def test_a_dry_run_counts_what_is_shared_and_runs_nothing(line: Checkout):
    shown = line.call(*SWEEP, "--jobs", "2", "--dry-run")
    assert "4 variants of toy, 2 at a time: 8 stages to run instead of 12." in shown
    assert all(name in shown for name in NAMES)
    assert not (line.path / ".work" / "sweeps").exists()
    assert not (line.path / "mlflow.db").exists()
    demonstrations = ("--set", "prepare={demonstrations: {path: toy.jsonl}}")
    off = line.call(*SWEEP, *demonstrations, "--dry-run")
    assert "4 variants of toy, 1 at a time: 4 stages to run instead of 8" in off  # dpo has nothing to learn from
    wrong = line.call(*SWEEP, "--set", "evaluate.temprature=0,1", exit_code=2)
    assert "did you mean `temperature`?" in wrong
    assert "Traceback" not in wrong


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_shared_stages_run_once_and_a_variant_that_fails_stops_no_other(line: Checkout):
    line.env["SWEEP_BREAKS"] = "3.0"
    shown = line.call(*SWEEP, "--jobs", "2", exit_code=1)
    assert events(line, "begins") == ONCE
    assert shown.count("restored from DVC's cache") == 4  # prepare and sft of the second variant of each seed
    assert "dpo: breaks as it was told" in shown
    assert "2 failed. The same command tries them again" in shown
    assert set(experiments(line)) >= set(NAMES[:2])
    (page,) = (line.path / "reports" / "sweeps").glob("*.html")
    assert "dpo: breaks as it was told" in page.read_text()

    del line.env["SWEEP_BREAKS"]
    shown = line.call(*SWEEP, "--jobs", "2")
    assert "2 of 4 are done already" in shown
    assert events(line, "begins") == {**ONCE, "dpo 0 3": 2, "dpo 1 3": 2}
    assert not any((line.path / ".work" / "sweeps").glob("*/toy-*"))  # no checkout is left

    numbers = json.loads(page.with_suffix(".json").read_text())
    first = next(metric for metric in numbers["metrics"] if metric["metric"] == "dpo/dpo/accuracy")
    assert [setting["label"] for setting in first["settings"]] == ["timeout_hours=3", "timeout_hours=2"]
    assert first["settings"][1]["difference"]["mean"] == pytest.approx(-0.1)
    assert first["settings"][0]["interval"]["low"] < 0.305 < first["settings"][0]["interval"]["high"]
    assert not any(word in page.read_text() for word in ("src=", "href=", "http:", "https:", "@import"))

    known = experiments(line)
    assert set(known) >= set(NAMES)
    assert known[NAMES[3]]["dpo/accuracy"] == "0.31"
    dvc(line, "exp", "apply", NAMES[3])
    assert (line.path / "models/dpo/result").read_text() == "dpo 1 3.0"
    assert "up to date" in dvc(line, "status")

    client = mlflow.MlflowClient(f"sqlite:///{line.path / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = [run for run in runs if run.data.tags["tuneline.kind"] == "sweep"]
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert sorted(children) == sorted(NAMES)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert children[NAMES[3]].data.params["dpo.launch.timeout_hours"] == "3.0"
    assert children[NAMES[3]].data.metrics["dpo/dpo/accuracy"] == 0.31
    assert parent.data.params == {"dpo.launch.timeout_hours": "2, 3", "seed": "0, 1"}
    assert {artifact.path for artifact in client.list_artifacts(parent.info.run_id)} == {page.name, f"{page.stem}.json"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_goes_on_where_it_was_and_leaves_no_process(line: Checkout, number: signal.Signals):
    line.env["SWEEP_SLOW"] = "dpo=8"
    process = line.start(*SWEEP)
    log = Path(line.env["SWEEP_LOG"])
    limit = time.monotonic() + 600
    while not log.is_file() or log.read_text().count("dpo begins") < 2:  # the first variant is done, the second not
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    process.communicate(timeout=120)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, [one.cmdline() for one in alive]
    line.env["SWEEP_SLOW"] = ""
    shown = line.call(*SWEEP)
    assert "1 of 4 are done already" in shown
    assert events(line, "ends") == ONCE
    assert all(count == 1 for name, count in events(line, "begins").items() if not name.startswith("dpo"))
    client = mlflow.MlflowClient(f"sqlite:///{line.path / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 5
    assert {run.info.status for run in runs} == {"FINISHED"}
