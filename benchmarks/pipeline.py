"""What orchestration costs: `python -m benchmarks pipeline`, with no past runs, and with many in MLflow and Prefect.

A scratch clone of this checkout runs a line of real stages that do next to nothing. What a stage takes in a run, less
what its own process takes, is the overhead: Prefect's task, DVC, identity, lock, publishing, MLflow. Then the stores
are filled with past runs through their clients, and the same is measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.runs import ROOT
from tuneline.errors import ConfigError, TunelineError

CONFIG = "benchmarks/pipeline.yaml"
MOST_A_STAGE, MOST_NOTHING = 3.0, 10.0
"""Seconds that a stage's overhead and a run with nothing to do may take."""


@dataclass(frozen=True)
class Costs:
    """One measurement; seconds."""

    num_past_runs: int
    overhead: dict[str, float]
    """A stage: what it took in the run, less its own process."""
    own: dict[str, float]
    """A stage: its own process."""
    around: float
    """The run without its stages: starting Python and Prefect, planning, report, the record in MLflow."""
    nothing: float
    """A run with nothing to do, no Prefect server named."""
    nothing_on_server: float
    """The same with a server, on which it is a flow run."""
    load: float
    """Processes that wanted a core on average, over the last minute."""

    @property
    def largest(self) -> float:
        return max(self.overhead.values(), default=0.0)

    @property
    def median(self) -> float:
        return statistics.median(self.overhead.values()) if self.overhead else 0.0


def main(arguments: list[str], console: Console) -> int:
    options = _parser().parse_args(arguments)
    if options.past_runs < 1:
        raise ConfigError(f"--past-runs {options.past_runs} must be at least 1.")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(options.folder or temporary).resolve()
        costs = measure(folder, options.past_runs, lambda line: console.print(line, style="dim", highlight=False))
    Console().print(table_of(costs))
    if options.json:
        options.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1), encoding="utf-8")
    return 0 if is_within(costs) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks pipeline", description=__doc__)
    parser.add_argument("--past-runs", type=int, default=500, help="runs to fill the stores with (default 500)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--folder", type=Path, help="keep the scratch clone here (default a temporary folder)")
    return parser


def measure(folder: Path, num_past_runs: int, say: Any, config: str = CONFIG, root: Path = ROOT) -> list[Costs]:
    """The costs with an empty store and with `num_past_runs` in it.

    Args:
        folder: Where the clone, the stores and the server's state go.
        say: Told what is done.
        config: A pipeline's YAML in the checkout.
        root: The checkout that is cloned.
    """
    from tasks.checkouts import scratch_checkout

    checkout = scratch_checkout(root, folder / "clone")
    (checkout / ".dvc" / "config.local").unlink()  # a cache of its own: nothing that was computed here is found
    env = _environment(folder, checkout)
    costs = []
    with _server(folder, env) as api:
        for number in (0, num_past_runs):
            if number:
                began = time.monotonic()
                _call([sys.executable, "-m", "benchmarks.pipeline_fill", str(number), config], checkout, env, api)
                say(f"{number} past runs made in {time.monotonic() - began:.0f} s")
            costs.append(_measure_once(checkout, env, api, config, number))
            say(f"with {number} past runs: {costs[-1]}")
    return costs


def _environment(folder: Path, checkout: Path) -> dict[str, str]:
    ours = ("PREFECT_", "MLFLOW_", "TUNELINE_", "DVC_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    env |= {"PYTHONPATH": os.pathsep.join(paths), "PREFECT_HOME": str(folder / "prefect"), "DVC_NO_ANALYTICS": "1"}
    return env | {"DVC_SITE_CACHE_DIR": str(folder / "dvc"), "DO_NOT_TRACK": "1"}


def _measure_once(checkout: Path, env: Mapping[str, str], api: str, config: str, number: int) -> Costs:
    began = time.monotonic()
    _call([sys.executable, "-m", "flows", "run", config, "--force", "--retries", "0"], checkout, env, api)
    total = time.monotonic() - began
    run = json.loads((checkout / ".work" / "last_run.json").read_text(encoding="utf-8"))
    taken = {stage["name"]: stage["seconds"] for stage in run["stages"] if stage["state"] == "ran" and not stage["off"]}
    own = {stage: _own_seconds(checkout, stage) for stage in taken}
    overhead = {stage: round(seconds - own[stage], 2) for stage, seconds in taken.items()}
    nothing = []
    for server in ("", api):
        began = time.monotonic()
        shown = _call([sys.executable, "-m", "flows", "run", config], checkout, env, server)
        nothing.append(round(time.monotonic() - began, 2))
        if "Nothing to do" not in shown:
            raise TunelineError(f"a second run of {config} had something to do:\n{shown[-2000:]}")
    around = round(total - sum(stage["seconds"] for stage in run["stages"]), 2)
    return Costs(number, overhead, own, around, *nothing, load=round(os.getloadavg()[0], 1))


def _own_seconds(checkout: Path, stage: str) -> float:
    """Wall time of the stage's own process in its last try; 0 where none was noted."""
    file = checkout / ".work" / stage / "costs.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return round(float(json.loads(lines[-1])["wall_seconds"]), 2) if lines else 0.0


def _call(command: Sequence[str], checkout: Path, env: Mapping[str, str], api: str) -> str:
    named = {"PREFECT_API_URL": api} if api else {}
    done = subprocess.run(command, cwd=checkout, env={**env, **named}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TunelineError(f"{' '.join(command[1:])} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


@contextmanager
def _server(folder: Path, env: Mapping[str, str]) -> Any:
    """A Prefect server with a database of its own; its API's address."""
    before = {name: os.environ.get(name) for name in ("PREFECT_HOME", "PREFECT_API_URL", "TUNELINE_TEMPORARY_SERVER")}
    from flows.server import start_temporary_server
    from flows.settings import apply_settings

    os.environ["PREFECT_HOME"] = env["PREFECT_HOME"]
    apply_settings(folder)
    server = start_temporary_server(folder / "server.log")
    try:
        server.wait_until_ready()
        yield server.api_url
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def is_within(costs: Sequence[Costs]) -> bool:
    """Whether every measurement is within what is promised."""
    slowest = max(max(cost.nothing, cost.nothing_on_server) for cost in costs)
    return max(cost.largest for cost in costs) <= MOST_A_STAGE and slowest <= MOST_NOTHING


def table_of(costs: Sequence[Costs]) -> Table:
    """A column a measurement; what is over its limit in red."""
    table = Table(title="Cost of orchestration, seconds", title_justify="left", caption_justify="left")
    table.caption = f"load while measuring: {', '.join(f'{cost.load:g}' for cost in costs)} on {os.cpu_count()} cores"
    table.add_column("")
    for cost in costs:
        table.add_column(f"{cost.num_past_runs} past runs", justify="right")
    table.add_column("at most", justify="right")

    def row(label: str, values: Sequence[float], most: float | None = None) -> None:
        cells = [f"[red]{value:.2f}[/red]" if most is not None and value > most else f"{value:.2f}" for value in values]
        table.add_row(label, *cells, "" if most is None else f"{most:g}")

    for stage in costs[0].overhead:
        row(f"overhead of {stage}", [cost.overhead.get(stage, float("nan")) for cost in costs], MOST_A_STAGE)
    row("median overhead a stage", [cost.median for cost in costs], MOST_A_STAGE)
    row("median of a stage's own process", [statistics.median(cost.own.values()) for cost in costs])
    row("around the stages, on a server", [cost.around for cost in costs])
    row("a run with nothing to do", [cost.nothing for cost in costs], MOST_NOTHING)
    row("the same, on a server", [cost.nothing_on_server for cost in costs], MOST_NOTHING)
    return table
