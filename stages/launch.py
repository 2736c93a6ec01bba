"""How a stage's own process is started: by Accelerate, on as many processes as its section says, or plainly."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from stages.schema import Launch
from stages.yaml_files import load_yaml


def launch_command(name: str, launch: Launch | None) -> tuple[list[str], dict[str, str]]:
    """The command of a stage and what it adds to the environment.

    Args:
        launch: of a stage that trains; None: one plain process.
    """
    module = ["-m", f"stages.{name}"]
    if launch is None:
        return [sys.executable, *module], {}
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    if launch.config_file is not None:
        return [*accelerate, "--config_file", launch.config_file, *module], {}
    options = {
        "num_processes": launch.num_processes,
        "num_machines": 1,
        "mixed_precision": "no",  # the trainer's own bf16 and fp16 say
        "dynamo_backend": "no",
        "num_cpu_threads_per_process": _num_threads(launch.num_processes),
    }
    flags = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    if launch.num_processes == 1:
        return [*accelerate, *flags, "--quiet", *module], {}
    # accelerate 1.15 runs one process where `--cpu --num_processes 2` asks for two; by --multi_gpu it starts them, and
    # the variable keeps them on the CPU. Port 0: the kernel chooses a free one, so stages side by side do not clash.
    env = {} if _has_gpus() else {"ACCELERATE_USE_CPU": "true"}
    return [*accelerate, *flags, "--multi_gpu", "--main_process_port", "0", *module], env


def num_gpus(launch: Launch, root: Path) -> int:
    """How many GPUs a stage takes: `launch.gpus`, or one a process where the machine has GPUs.

    Args:
        launch: of the stage; its `config_file` is named from the checkout.
        root: the checkout.
    """
    if launch.gpus is not None:
        return launch.gpus
    if gpus_of_machine() == 0:
        return 0
    if launch.config_file is None:
        return launch.num_processes
    accelerate = load_yaml((root / launch.config_file).read_text()) or {}
    return max(1, int(accelerate.get("num_processes", 1)) // int(accelerate.get("num_machines", 1)))


def gpus_of_machine() -> int:
    """The GPUs that processes started here may use. It asks the kernel, as importing torch takes seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [part for part in visible.split(",") if part.strip()]
        return 0 if "-1" in named else len(named)
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _num_threads(num_processes: int) -> int:
    """Threads a process: what the user has set, or the processors shared out. Accelerate would take 1."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() else max(1, len(os.sched_getaffinity(0)) // num_processes)


def _has_gpus() -> bool:
    import torch

    return torch.cuda.is_available()
