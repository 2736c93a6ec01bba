"""The stop-watch inside a measured process. It knows neither library: both scripts use it alike."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from benchmarks import FOLDER, RESULT


class Measurement(TrainerCallback):
    """Times the optimizer steps of a run and the memory it takes."""

    def __init__(self, folder: Path, result: Path):
        self.folder, self.result = folder, result
        self.workload = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
        self.begun = time.perf_counter()
        self.step_ends: list[float] = []
        self.waited: list[float] = []
        self.train_begun = self.train_ended = 0.0
        self.memory_before = self.peak_memory = 0.0

    @classmethod
    def begin(cls) -> Measurement:
        """Starts the clock of the whole run: model, tokenisation, training."""
        return cls(Path(os.environ[FOLDER]), Path(os.environ[RESULT]))

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    @property
    def training_arguments(self) -> dict[str, Any]:
        own = {"max_length": self.workload["max_length"], "train_sampling_strategy": "sequential"}
        return self.arguments_of_all_methods | self.sizes | own

    @property
    def sizes(self) -> dict[str, Any]:
        return {
            "per_device_train_batch_size": self.workload["batch_size"],
            "max_steps": self.workload["steps"] + 1,
            "logging_steps": 1,
        }

    @property
    def arguments_of_all_methods(self) -> dict[str, Any]:
        return {
            "output_dir": str(self.result.with_suffix("")),
            "learning_rate": self.workload["learning_rate"],
            "gradient_checkpointing": self.workload["gradient_checkpointing"],
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": False,
            "use_cpu": True,
            "seed": self.workload["seed"],
        }

    def dataset(self) -> Dataset:
        with (self.folder / "rows.jsonl").open(encoding="utf-8") as lines:
            return Dataset.from_list([json.loads(line) for line in lines])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.train_begun = time.perf_counter()
        self.memory_before = resident_memory()
        forget_peak_memory()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end_step()

    def end_step(self) -> None:
        self.step_ends.append(time.perf_counter())
        self.waited.append(seconds_waited())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.train_ended = time.perf_counter()
        self.peak_memory = peak_memory()

    def finish(self, log_history: list[dict[str, float]]) -> None:
        """Write what was measured."""
        self.result.write_text(json.dumps(self.measured(log_history)), encoding="utf-8")

    def measured(self, log_history: list[dict[str, float]]) -> dict[str, Any]:
        steps = [line for line in log_history if "loss" in line]
        return self.measured_times() | {
            "losses": [line["loss"] for line in steps],
            "grad_norms": [line["grad_norm"] for line in steps],
            "num_tokens": steps[-1]["num_tokens"] - steps[0]["num_tokens"],
        }

    def measured_times(self) -> dict[str, Any]:
        """Times and memory, which no log has."""
        return {
            "loop_seconds": self.step_ends[-1] - self.step_ends[0],
            "waited": (self.waited[-1] - self.waited[0]) / (self.step_ends[-1] - self.step_ends[0]),
            "step_seconds": [end - start for start, end in zip(self.step_ends, self.step_ends[1:], strict=False)],
            "end_to_end_seconds": self.train_ended - self.begun,
            "setup_seconds": self.train_begun - self.begun,
            "peak_memory": self.peak_memory,
            "memory_before": self.memory_before,
            "num_threads": torch.get_num_threads(),
        }


def seconds_waited() -> float:
    """Time that the threads of this process were ready to run and had no core, added up; 0 where it is not known."""
    waited = 0.0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            waited += int(file.read_text(encoding="ascii").split()[1]) / 1e9
    return waited


def resident_memory() -> float:
    """Bytes in memory now, where the system says so; else the peak so far."""
    return _status("VmRSS") or _max_rss()


def peak_memory() -> float:
    """Most bytes in memory at once: since `forget_peak_memory` on Linux, else since the process began."""
    return _status("VmHWM") or _max_rss()


def forget_peak_memory() -> None:
    """Linux lets a process restart the count of its peak, so that imports and tokenisation are not measured."""
    if sys.platform == "linux" and os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(key: str) -> float:
    if sys.platform != "linux":
        return 0.0
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), 0.0)


def _max_rss() -> float:
    """getrusage counts kilobytes, on macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
