"""The launch configurations that `--accelerate_config` knows by name: those of TRL, one process a visible GPU."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml

from tuneline.errors import ConfigError

_FSDP = {
    "fsdp_activation_checkpointing": False,  # the trainers' gradient_checkpointing does it
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_cpu_ram_efficient_loading": True,
    "fsdp_offload_params": False,
    "fsdp_state_dict_type": "FULL_STATE_DICT",
}
_DEEPSPEED = {"deepspeed_multinode_launcher": "standard", "zero3_init_flag": False}

NAMED: dict[str, dict[str, Any]] = {
    "single_gpu": {"distributed_type": "NO"},
    "multi_gpu": {"distributed_type": "MULTI_GPU"},
    "fsdp1": {
        "distributed_type": "FSDP",
        "fsdp_config": {
            **_FSDP,
            "fsdp_version": 1,
            "fsdp_reshard_after_forward": "FULL_SHARD",
            "fsdp_backward_prefetch": "BACKWARD_PRE",
            "fsdp_forward_prefetch": True,
            "fsdp_sync_module_states": True,
            "fsdp_use_orig_params": True,
        },
    },
    "fsdp2": {
        "distributed_type": "FSDP",
        "fsdp_config": {**_FSDP, "fsdp_version": 2, "fsdp_reshard_after_forward": True},
    },
    "zero1": {"distributed_type": "DEEPSPEED", "deepspeed_config": {**_DEEPSPEED, "zero_stage": 1}},
    "zero2": {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            **_DEEPSPEED,
            "zero_stage": 2,
            "offload_optimizer_device": "none",
            "offload_param_device": "none",
        },
    },
    "zero3": {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            **_DEEPSPEED,
            "zero_stage": 3,
            "offload_optimizer_device": "none",
            "offload_param_device": "none",
            "zero3_init_flag": True,
            "zero3_save_16bit_model": True,
        },
    },
}


def accelerate_config_file(name: str, folder: Path, num_gpus: int, has_bf16: bool) -> Path:
    """The file that a name stands for, written to `folder`, or the file at a path.

    Raises:
        ConfigError: neither a name nor a file, or a name for GPUs where there are none.
    """
    if name not in NAMED:
        if os.path.isfile(name):
            return Path(name)
        near = difflib.get_close_matches(name, NAMED, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"--accelerate_config {name}: {hint}Use {', '.join(NAMED)}, or the path of a file that "
            "`accelerate config` wrote."
        )
    if num_gpus == 0 and name != "single_gpu":
        raise ConfigError(
            f"--accelerate_config {name} runs a process on each GPU, and none is visible; leave it out, or pass "
            "--num_processes 2 for processes on the CPU."
        )
    settings = {
        "compute_environment": "LOCAL_MACHINE",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": "bf16" if has_bf16 else "no",
        "num_machines": 1,
        "num_processes": 1 if name == "single_gpu" else max(num_gpus, 1),
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
        **NAMED[name],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
