"""The variants of a sweep, each in a scratch checkout of its own, several at a time, each shared stage once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stages.loading import write_params
from stages.supervise import owner_env, run_guarded, stop_all
from stages.yaml_files import load_yaml
from tasks.checkouts import checkout_environment, scratch_checkout
from tasks.display import ended_stage
from tasks.graph import PARAMS_FILE
from tasks.history import add_to_history
from tasks.summary import RunSummary, load_run
from tasks.sweep_plan import Schedule, Units
from tasks.sweep_record import SWEEPS, VARIANT_RESULT, SweepRecord, VariantRecord
from tasks.sweep_settings import Variant
from tasks.sweep_sharing import SHARED_STAGES
from tasks.sweep_tracking import end_variant
from tasks.tracking import VARIANT_RUN
from tuneline.errors import TunelineError
from tuneline.logging import get_logger

logger = get_logger(__name__)

Say = Callable[[str, str], None]
"""Takes a variant's name and one line about it."""

_LAST_LINES = 15


class Sweep:
    """Runs the variants that are not done yet; each ends as done or failed, and none stops another."""

    def __init__(
        self,
        root: Path,
        record: SweepRecord,
        variants: Mapping[str, Variant],
        units: dict[str, Units],
        *,
        stamp: str,
        say: Say,
        keep: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        self._root, self._record, self._variants, self._stamp = root, record, variants, stamp
        self._say, self._keep, self._options = say, keep, options
        self._schedule = Schedule({name: units[name] for name in variants})
        self._changed = threading.Condition()
        self._one_at_a_time = threading.Lock()
        self._stopping = False
        self._checkouts: dict[str, Path] = {}

    def run(self, devices: Sequence[str | None]) -> None:
        """Runs as many at the same time as there are `devices`: CUDA_VISIBLE_DEVICES of each, None where it stays."""
        for name, variant in self._variants.items():  # all now, so that no later edit makes them differ
            folder = self._record.folder / name
            made = scratch_checkout(self._root, folder, files=variant.config.files.values())
            write_params(variant.config, made / PARAMS_FILE)
            self._checkouts[name] = made
        threads = [threading.Thread(target=self._work, args=(device,), daemon=True) for device in devices]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():  # a join without an end would not let signals through
                    thread.join(timeout=0.2)
        except BaseException:
            with self._changed:
                self._stopping = True
                self._changed.notify_all()
            stop_all()
            for thread in threads:
                thread.join(timeout=45)
            raise

    def _work(self, devices: str | None) -> None:
        while (name := self._take()) is not None:
            try:
                self._run_variant(name, devices)
            except Exception as error:  # this one failed; the others go on
                if not self._stopping:
                    logger.debug("variant %s", name, exc_info=True)
                    self._fail(name, str(error))
            finally:
                with self._changed:
                    self._schedule.ended(name)
                    self._changed.notify_all()

    def _take(self) -> str | None:
        with self._changed:
            while self._schedule.waiting and not self._stopping:
                name = self._schedule.next()
                if name is not None:
                    return name
                self._changed.wait()
            return None

    def _run_variant(self, name: str, devices: str | None) -> None:
        checkout, variant = self._checkouts[name], self._record.variants[name]
        with self._one_at_a_time:
            variant.state, variant.error = "running", ""
            self._record.save()
        self._say(name, "started")
        lines: list[str] = []

        def on_line(line: str) -> None:
            if not line.strip():
                return
            lines.append(line)
            self._say(name, line)
            if stage := ended_stage(line):
                with self._changed:
                    self._schedule.stage_done(name, stage)
                    self._changed.notify_all()

        began = time.monotonic()
        (checkout / VARIANT_RESULT).unlink(missing_ok=True)
        command = [sys.executable, "-m", "flows.sweep_variant", str(checkout), "--name", name, *self._options]
        code = run_guarded(command, env=self._environment(checkout, variant, devices), on_line=on_line)
        if self._stopping:
            return
        run = _result(checkout)
        if run is not None:
            variant.take(run)
        variant.seconds = round(time.monotonic() - began, 2)
        if code != 0 or run is None:
            reason = "\n".join(lines[-_LAST_LINES:]) or "it wrote nothing"
            self._fail(name, f"exit code {code}:\n{reason}", recorded=run is not None)
            return
        self._keep_results(name, checkout, variant, run)

    def _environment(self, checkout: Path, variant: VariantRecord, devices: str | None) -> dict[str, str]:
        env = {**checkout_environment(self._root, checkout), **owner_env(), "PYTHONUNBUFFERED": "1"}
        env[SHARED_STAGES] = str(self._root / SWEEPS / "stages")
        env |= {VARIANT_RUN: variant.mlflow_run} if variant.mlflow_run else {}
        return env | ({} if devices is None else {"CUDA_VISIBLE_DEVICES": devices})

    def _keep_results(self, name: str, checkout: Path, variant: VariantRecord, run: RunSummary) -> None:
        """What outlives the checkout: the experiment in DVC, the report, the times. Then the checkout is removed."""
        with self._one_at_a_time:
            variant.experiment = save_experiment(self._root, checkout, name)
            add_to_history(self._root, run)
            folder = self._record.folder / "reports"
            folder.mkdir(exist_ok=True)
            report = checkout / "reports" / "report.html"
            if report.is_file():
                shutil.copy2(report, folder / f"{name}.html")
            variant.state, variant.stamp = "done", self._stamp
            self._record.save()
        if not self._keep:
            shutil.rmtree(self._record.folder / name, ignore_errors=True)
        self._say(name, f"done in {variant.seconds:.0f} s; experiment {variant.experiment}")

    def _fail(self, name: str, reason: str, *, recorded: bool = False) -> None:
        variant = self._record.variants[name]
        with self._one_at_a_time:
            variant.state, variant.error = "failed", reason
            self._record.save()
        if not recorded:
            end_variant(variant.mlflow_run)
        self._say(name, "failed; the others go on")


def _result(checkout: Path) -> RunSummary | None:
    try:
        return load_run(checkout / VARIANT_RESULT)
    except TunelineError:  # it died before it could leave one
        return None


def save_experiment(root: Path, checkout: Path, name: str) -> str:
    """Makes what lies in a scratch checkout an experiment of `root`, for `dvc exp show`, `apply` and `branch`.

    Raises:
        TunelineError: DVC or git refuses; the results are in DVC's cache all the same.
    """
    stages = load_yaml((checkout / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs = [out for stage in stages.values() for kind in ("outs", "metrics", "plots") for out in stage.get(kind, ())]
    in_git = [path for out in outs if isinstance(out, dict) for path, how in out.items() if how.get("cache") is False]
    include = [word for path in (PARAMS_FILE, *in_git) if (checkout / path).exists() for word in ("-I", path)]
    env = checkout_environment(root, checkout)
    _call([sys.executable, "-m", "dvc", "exp", "save", "-q", "-f", "-n", name, *include], checkout, env)
    listed = _call(["git", "for-each-ref", "--format=%(refname)", "refs/exps"], checkout, env).split()
    ref = next(ref for ref in listed if ref.endswith(f"/{name}"))
    _call(["git", "fetch", "-q", "--no-write-fetch-head", _top(checkout, env), f"+{ref}:{ref}"], root, dict(os.environ))
    return name


def _top(checkout: Path, env: Mapping[str, str]) -> str:
    return _call(["git", "rev-parse", "--show-toplevel"], checkout, env).strip()


def _call(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=dict(env), capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(command[:6])
        raise TunelineError(f"{words} failed in {folder}: {(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout
