"""The options of the step interface: names and defaults of `PPOConfig` in TRL 0.11."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

from tuneline.errors import ConfigError

KL_PENALTIES = ("kl", "abs", "mse", "full")
TRACKERS = tuple(sorted(LoggerType.list()))


@dataclass
class ClassicPPOConfig:
    """Options of `StepPPOTrainer`.

    Raises:
        ConfigError: an option out of its range, or that contradicts another.
    """

    exp_name: str = field(
        default_factory=lambda: Path(sys.argv[0]).stem, metadata={"help": "Name of the run, for trackers."}
    )
    seed: int = field(default=0, metadata={"help": "All that the trainer draws comes from it."})
    log_with: str | GeneralTracker | None = field(
        default=None, metadata={"help": "Tracker of Accelerate, by name (wandb, tensorboard). None: none."}
    )
    task_name: str | None = field(default=None, metadata={"help": "Name of the task, for trackers."})
    model_name: str | None = field(default="gpt2", metadata={"help": "Name of the model, for trackers."})
    query_dataset: str | None = field(
        default="stanfordnlp/imdb", metadata={"help": "Name of the data set, for trackers."}
    )
    reward_model: str | None = field(
        default="sentiment-analysis:lvwerra/distilbert-imdb",
        metadata={"help": "Name of the reward model, for trackers."},
    )
    remove_unused_columns: bool = field(
        default=True, metadata={"help": "Drop columns of the data set that the model does not read."}
    )
    tracker_kwargs: dict[str, Any] = field(default_factory=dict, metadata={"help": "Keywords of the tracker."})
    accelerator_kwargs: dict[str, Any] = field(default_factory=dict, metadata={"help": "Keywords of the Accelerator."})
    project_kwargs: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Keywords of Accelerate's ProjectConfiguration, such as logging_dir."}
    )
    tracker_project_name: str = field(default="trl", metadata={"help": "Name of the project in the tracker."})
    push_to_hub_if_best_kwargs: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "Keywords of push_to_hub, called whenever the mean reward is the highest so far. Empty: never."
        },
    )

    steps: int = field(default=20000, metadata={"help": "Queries of the whole run; sets total_ppo_epochs."})
    learning_rate: float = field(default=1.41e-5, metadata={"help": "Of Adam, where no optimizer is given."})
    adap_kl_ctrl: bool = field(default=True, metadata={"help": "Adapt the KL coefficient towards a target."})
    init_kl_coef: float = field(
        default=0.2, metadata={"help": "The first KL coefficient, and the only one where it is not adapted."}
    )
    kl_penalty: str = field(
        default="kl",
        metadata={"help": "kl: the log-ratio. abs: its size. mse: half its square. full: over the vocabulary."},
    )
    target: float = field(default=6.0, metadata={"help": "KL to hold, in nats a completion."})
    horizon: float = field(
        default=10000.0, metadata={"help": "Completions over which the coefficient changes by a fifth at most."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount a token."})
    lam: float = field(default=0.95, metadata={"help": "Of generalised advantage estimation."})
    cliprange: float = field(default=0.2, metadata={"help": "How far from 1 the probability ratio counts."})
    cliprange_value: float = field(default=0.2, metadata={"help": "How far a value may go from the old one."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    batch_size: int = field(default=128, metadata={"help": "Queries of a call of step, on each process."})
    forward_batch_size: int | None = field(default=None, metadata={"help": "Older name of mini_batch_size."})
    mini_batch_size: int = field(default=128, metadata={"help": "Sequences of a forward pass."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Forward passes of an update."})
    world_size: int | None = field(default=None, metadata={"help": "Set by the trainer: processes."})
    ppo_epochs: int = field(default=4, metadata={"help": "Passes over a batch."})
    max_grad_norm: float | None = field(default=None, metadata={"help": "Longest gradient. None: any."})
    optimize_cuda_cache: bool | None = field(default=None, metadata={"help": "Older name of optimize_device_cache."})
    optimize_device_cache: bool = field(
        default=False, metadata={"help": "Give unused memory back to the device before the updates."}
    )
    early_stopping: bool = field(
        default=False, metadata={"help": "End the passes over a batch once the policy has moved 1.5 times target_kl."}
    )
    target_kl: float = field(default=1.0, metadata={"help": "For early_stopping, in nats a token."})
    compare_steps: int = field(default=1, metadata={"help": "Calls of log_stats between two looks at the best reward."})
    ratio_threshold: float = field(
        default=10.0, metadata={"help": "A forward pass whose mean probability ratio is above teaches nothing."}
    )
    use_score_scaling: bool = field(
        default=False, metadata={"help": "Divide scores by the standard deviation of all so far."}
    )
    use_score_norm: bool = field(
        default=False, metadata={"help": "With use_score_scaling: subtract the mean of all so far too."}
    )
    score_clip: float | None = field(
        default=None, metadata={"help": "Bound of a score, above and below, after scaling. None: none."}
    )
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Bring the rewards of the tokens of a batch to a variance of 1."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Compute activations again in the backward pass rather than keep them."}
    )

    is_encoder_decoder: bool | None = field(default=None, metadata={"help": "Set by the trainer, from the model."})
    is_peft_model: bool | None = field(default=None, metadata={"help": "Set by the trainer, from the model."})
    backward_batch_size: int | None = field(default=None, metadata={"help": "Computed: sequences of an update."})
    global_backward_batch_size: int | None = field(
        default=None, metadata={"help": "Set by the trainer: the same over all processes."}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "Set by the trainer: batch_size over all processes."}
    )

    def __post_init__(self) -> None:
        if self.forward_batch_size is not None:
            self.mini_batch_size = self.forward_batch_size
        if self.optimize_cuda_cache is not None:
            self.optimize_device_cache = self.optimize_cuda_cache
        self._check_ranges()
        update = self.mini_batch_size * self.gradient_accumulation_steps
        if self.batch_size % update:
            fitting = [size for size in range(1, self.batch_size + 1) if self.batch_size % size == 0]
            raise ConfigError(
                f"batch_size={self.batch_size} is no multiple of {update}, mini_batch_size x "
                f"gradient_accumulation_steps; use one of {fitting} for their product."
            )
        self.backward_batch_size = update
        self.total_ppo_epochs = math.ceil(self.steps / self.batch_size)

    def _check_ranges(self) -> None:
        at_least_one = ("batch_size", "mini_batch_size", "gradient_accumulation_steps", "ppo_epochs", "compare_steps")
        ranges = [(name, getattr(self, name) >= 1, "at least 1") for name in (*at_least_one, "steps")]
        positive = ["learning_rate", "cliprange_value", "target_kl", "ratio_threshold"]
        positive += ["target", "horizon"] if self.adap_kl_ctrl else []
        ranges += [(name, getattr(self, name) > 0, "above 0") for name in positive]
        ranges += [(name, 0 <= getattr(self, name) <= 1, "from 0 to 1") for name in ("gamma", "lam", "cliprange")]
        ranges += [(name, getattr(self, name) >= 0, "at least 0") for name in ("init_kl_coef", "vf_coef")]
        for name in ("max_grad_norm", "score_clip"):
            value = getattr(self, name)
            ranges.append((name, value is None or value > 0, "above 0, or None"))
        for name, is_valid, wanted in ranges:
            if not is_valid:
                raise ConfigError(f"{name}={getattr(self, name)} must be {wanted}.")
        if self.kl_penalty not in KL_PENALTIES:
            raise ConfigError(f"kl_penalty={self.kl_penalty!r} is unknown; use one of {', '.join(KL_PENALTIES)}.")
        if isinstance(self.log_with, str) and self.log_with not in TRACKERS:
            raise ConfigError(f"log_with={self.log_with!r} is unknown; use one of {', '.join(TRACKERS)}, or None.")
        if self.use_score_norm and not self.use_score_scaling:
            raise ConfigError("use_score_norm=True is read with use_score_scaling=True alone; set both.")

    def to_dict(self) -> dict[str, Any]:
        """All options, those in dictionaries as `outer/inner`."""
        flat: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, dict):
                flat |= {f"{one.name}/{key}": inner for key, inner in value.items()}
            else:
                flat[one.name] = value
        return flat
