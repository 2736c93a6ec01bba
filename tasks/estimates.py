"""What a stage is likely to take: steps and tokens from its settings and the data, time from its last run here."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.history import PastRun
from tasks.summary import read_metrics

_ROWS = {
    "sft": "demonstrations/train",
    "reward": "preferences/train",
    "dpo": "preferences/train",
    "ppo": "prompts/train",
    "grpo": "prompts/train",
}
_TOKENS = {"sft": "sft/train/tokens", "reward": "preference/train/tokens", "dpo": "preference/train/tokens"}

# transformers' defaults, which a config need not repeat; importing them would take seconds.
_DEFAULTS = {
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_steps": -1,
}
_NUM_GENERATIONS = {"ppo": 1, "grpo": 8, "rloo": 2}  # those of PPOConfig, GRPOConfig and RLOOConfig
_PASSES = {"ppo": ("num_ppo_epochs", 4), "grpo": ("num_iterations", 1)}


@dataclass(frozen=True)
class Estimate:
    """None where it is not known."""

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None


def estimate(root: Path, stage: str, settings: dict[str, Any], past: PastRun | None, *, prepared: bool) -> Estimate:
    """Of one stage, if it ran now; `prepared` says whether the data is there and will stay as it is."""
    section = settings.get(stage) or {}
    counts = read_metrics(root, "prepare") if prepared else {}
    seconds = past.seconds if past else None
    if stage not in _ROWS or not isinstance(section, dict) or "training" not in section:
        return Estimate(seconds=seconds)
    training = {**_DEFAULTS, **section["training"]}
    rows, tokens = counts.get(_ROWS[stage]), counts.get(_TOKENS.get(stage, ""))
    if rows and stage in _PASSES:  # a row of a batch is a completion, and each is learned from several times
        num_generations = training.get("num_generations", _NUM_GENERATIONS[section.get("method", stage)])
        rows = rows * num_generations * training.get(*_PASSES[stage])
    a_step = training["per_device_train_batch_size"] * (section.get("launch") or {}).get("num_processes", 1)
    accumulated = training["gradient_accumulation_steps"]
    steps: int | None = None
    epochs = float(training["num_train_epochs"])
    episodes = training.get("total_episodes")  # completions of PPO, each of them learned from several times
    if training["max_steps"] > 0 or episodes:
        passes = training.get(*_PASSES["ppo"])
        steps = int(training["max_steps"]) if not episodes else math.ceil(episodes * passes / (a_step * accumulated))
        epochs = steps * a_step * accumulated / rows if rows else epochs
    elif rows and not training.get("packing"):  # packing makes fewer rows, how many is known only when it is done
        an_epoch = math.ceil(math.ceil(rows / a_step) / accumulated)
        steps = math.ceil(an_epoch * epochs)
    if seconds is not None and past and past.steps and steps:
        seconds = seconds * steps / past.steps
    known_tokens = int(tokens * epochs) if tokens and (rows or training["max_steps"] <= 0) else None
    return Estimate(steps, known_tokens, seconds)
