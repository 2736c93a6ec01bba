"""A bias-corrected moving average of the weights in training (Block & Zhang 2025, arXiv:2508.00180).

It deviates from the paper's code and from TRL's callback in that a checkpoint carries the averages, so that a resumed
run ends with those of the whole one, and in that only what trains is averaged: of an adapter, the adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from tuneline.errors import ConfigError
from tuneline.logging import get_logger
from tuneline.models.layouts import policy_of, unwrapped

logger = get_logger(__name__)

_FILE = "bema.safetensors"
_START, _AVERAGE, _CORRECTED = "start.", "average.", "corrected."


class BEMACallback(TrainerCallback):
    """Keeps an average of the weights beside training and writes it, as a model, to `output_dir/bema`.

    At a step t that updates, with b = max((lag + multiplier t)^-ema_power, min_ema_multiplier) and
    a = (lag + multiplier t)^-bias_power,

        average = (1 - b) average + b weights,    corrected = average + a (weights - start).

    Training itself is left as it is.

    Args:
        update_freq: optimizer steps between two updates.
        ema_power: how fast the newest weights' share in the average falls; 0 for no average.
        bias_power: how fast the correction falls; 0 for all of it at every step.
        lag: steps that are thought to lie before the first.
        update_after: step at which the averages start; before it nothing is done.
        multiplier: steps that each step counts for.
        min_ema_multiplier: least share of the newest weights.
        device: where the three copies of what trains are kept.

    Raises:
        ConfigError: values out of their range; weights that are spread over processes (FSDP, ZeRO-3); a checkpoint
            that was written without this callback.
    """

    def __init__(
        self,
        update_freq: int = 400,
        ema_power: float = 0.5,
        bias_power: float = 0.2,
        lag: int = 10,
        update_after: int = 0,
        multiplier: float = 1.0,
        min_ema_multiplier: float = 0.0,
        device: str = "cpu",
    ):
        if update_freq < 1:
            raise ConfigError(f"update_freq={update_freq} must be at least 1: optimizer steps between two updates.")
        for name, value in (("lag", lag), ("multiplier", multiplier), ("update_after", update_after)):
            if value < 0:
                raise ConfigError(f"{name}={value} must not be below 0.")
        if lag + multiplier <= 0:
            raise ConfigError("lag and multiplier are both 0, so that the averages have no first share; raise one.")
        self.update_freq, self.ema_power, self.bias_power = update_freq, ema_power, bias_power
        self.lag, self.update_after, self.multiplier = lag, update_after, multiplier
        self.min_ema_multiplier, self.device = min_ema_multiplier, device
        self.start: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.corrected: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        weights = _trained(model)
        for name, weight in weights.items():
            if isinstance(weight, DTensor) or not weight.numel():
                raise ConfigError(
                    f"BEMACallback averages whole weights, and {name} is spread over processes; train with DDP."
                )
        self._begin(weights)
        if state.global_step:
            self._load(_folder(args, state) / _FILE, weights)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        since = state.global_step - self.update_after
        if since == 0:
            self._begin(_trained(model))
        elif since > 0 and since % self.update_freq == 0:
            self._update(_trained(model), state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            parts = ((_START, self.start), (_AVERAGE, self.average), (_CORRECTED, self.corrected))
            tensors = {prefix + name: one.cpu() for prefix, part in parts for name, one in part.items()}
            folder = _folder(args, state)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / _FILE)

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / "bema"
        weights = _trained(model)
        kept = {name: weight.detach().clone() for name, weight in weights.items()}
        try:
            _put(weights, self.corrected)
            policy_of(model).save_pretrained(folder)
        finally:
            _put(weights, kept)
        if processing_class is not None:
            processing_class.save_pretrained(folder)
        logger.info("wrote the bias-corrected average of the weights to %s", folder)

    @torch.no_grad()
    def _begin(self, weights: dict[str, nn.Parameter]) -> None:
        self.start = {name: weight.detach().to(self.device, copy=True) for name, weight in weights.items()}
        self.average = {name: one.clone() for name, one in self.start.items()}
        self.corrected = {name: one.clone() for name, one in self.start.items()}

    @torch.no_grad()
    def _update(self, weights: dict[str, nn.Parameter], step: int) -> None:
        age = self.lag + self.multiplier * step
        share, correction = max(age**-self.ema_power, self.min_ema_multiplier), age**-self.bias_power
        for name, weight in weights.items():
            now = weight.detach().to(self.device)
            average = self.average[name].mul_(1 - share).add_(now, alpha=share)
            self.corrected[name] = average + correction * (now - self.start[name])
        logger.info("step %d: the average of the weights takes %.3g of today's", step, share)

    def _load(self, path: Path, weights: dict[str, nn.Parameter]) -> None:
        if not path.is_file():
            raise ConfigError(
                f"cannot resume with BEMACallback: {path} is missing, so the averages are lost; start anew, or leave "
                "the callback out."
            )
        tensors = load_file(path, device=self.device)
        for prefix, part in ((_START, self.start), (_AVERAGE, self.average), (_CORRECTED, self.corrected)):
            if set(part) != {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}:
                raise ConfigError(f"{path} averages other parameters than those that train now; resume the same model.")
            part.update({name: tensors[prefix + name] for name in part})


def _trained(model: Any) -> dict[str, nn.Parameter]:
    """By name, what the optimizer moves; a value function beside the policy is no part of it."""
    policy = policy_of(unwrapped(model))
    return {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}


@torch.no_grad()
def _put(weights: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
