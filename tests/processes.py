"""Trainings in one process or several (gloo), each a module of these tests that leaves weights and logs in a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.trainers.build import weights
from tuneline.trainers.base import BaseTrainer

Outcome = tuple[dict[str, torch.Tensor], list[dict[str, Any]]]


def launch(num_processes: int, module: str, *arguments: str, timeout: float = 240) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", module, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def outcome_of(num_processes: int, module: str, *arguments: str, folder: Path, timeout: float = 240) -> Outcome:
    """Weights and logs of a module whose last argument is the folder to leave them in."""
    folder.mkdir()
    launch(num_processes, module, *arguments, str(folder), timeout=timeout)
    return load_file(folder / "weights.safetensors"), json.loads((folder / "logs.json").read_text())


def leave_outcome(trainer: BaseTrainer, metrics: dict[str, float], folder: str) -> None:
    """For `outcome_of`: the weights, and the log of each step with the metrics of an evaluation at the end."""
    if trainer.is_world_process_zero():
        save_file(weights(trainer), Path(folder) / "weights.safetensors")
        logs = [line for line in trainer.state.log_history if "loss" in line]
        (Path(folder) / "logs.json").write_text(json.dumps([*logs, metrics]))
