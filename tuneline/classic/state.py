"""What a step trainer carries from one run to the next."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tuneline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tuneline.classic.trainer import StepPPOTrainer


def snapshot(trainer: StepPPOTrainer) -> dict[str, Any]:
    """See `StepPPOTrainer.state_dict`; numbers and tensors alone, copied."""
    learning = trainer.learning
    scheduler = trainer.lr_scheduler
    return {
        "parameters": {name: parameter.detach().clone() for name, parameter in _learning(trainer).items()},
        "optimizer": _copied(learning.optimizer.state_dict()),
        "lr_scheduler": None if scheduler is None else dict(scheduler.state_dict()),
        "kl_ctl": learning.kl_ctl.state_dict(),
        "running": learning.running.state_dict(),
        "counts": {"steps": learning.num_steps, "generated": trainer.num_generated},
        "tracking": trainer.tracking.state_dict(),
        "generators": _generators(),
    }


def restore(trainer: StepPPOTrainer, state: Mapping[str, Any]) -> None:
    """See `StepPPOTrainer.load_state_dict`.

    Raises:
        ConfigError: a state of other parameters, or with a schedule where there is none.
    """
    parameters, learning = _learning(trainer), trainer.learning
    if state["parameters"].keys() != parameters.keys():
        odd = sorted(state["parameters"].keys() ^ parameters.keys())
        raise ConfigError(f"this state is of another trainer: {odd[0]!r} learns in one of them alone; make both alike.")
    if (state["lr_scheduler"] is None) != (trainer.lr_scheduler is None):
        raise ConfigError("this state and the trainer: one has an lr_scheduler and one has none; make both alike.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state["parameters"][name])
    learning.optimizer.load_state_dict(_copied(state["optimizer"]))
    if trainer.lr_scheduler is not None:
        trainer.lr_scheduler.load_state_dict(state["lr_scheduler"])
    learning.kl_ctl.load_state_dict(state["kl_ctl"])
    learning.running.load_state_dict(state["running"])
    learning.num_steps, trainer.num_generated = state["counts"]["steps"], state["counts"]["generated"]
    trainer.tracking.load_state_dict(state["tracking"])
    _set_generators(state["generators"])


def save_folder(trainer: StepPPOTrainer, folder: Path) -> None:
    """A file a process: written aside and renamed, so that a file that is there is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _file(trainer, folder)
    beside = path.with_suffix(".part")
    torch.save(snapshot(trainer), beside)
    beside.replace(path)
    trainer.accelerator.wait_for_everyone()


def load_folder(trainer: StepPPOTrainer, folder: Path) -> None:
    """Raises:
    DataError: no state of this process is there.
    """
    path = _file(trainer, folder)
    if not path.is_file():
        raise DataError(f"{path} is missing; save_state writes one file a process, so load with as many as saved.")
    restore(trainer, torch.load(path, map_location="cpu", weights_only=True))


def _file(trainer: StepPPOTrainer, folder: Path) -> Path:
    return folder / f"step_ppo_state_{trainer.accelerator.process_index}.pt"


def _learning(trainer: StepPPOTrainer) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _generators() -> dict[str, Any]:
    """Of Python, numpy, torch and its devices."""
    name, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, [int(word) for word in words], int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_generators(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    name, words, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(words, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
