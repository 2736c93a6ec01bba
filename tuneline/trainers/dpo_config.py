"""Configuration of Direct Preference Optimization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from tuneline.errors import ConfigError
from tuneline.losses.preference import SORTING_LOSS_TYPES, check_preference_options
from tuneline.trainers.base_config import ReferenceConfig
from tuneline.trainers.older_names import takes_older_options

LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


@takes_older_options
@dataclass
class DPOConfig(ReferenceConfig):
    """Options of `DPOTrainer`: names and defaults of TRL 1.16."""

    truncation_mode: Literal["keep_start", "keep_end"] = field(
        default="keep_start", metadata={"help": "Which end of a sequence over max_length is kept."}
    )
    padding_free: bool = field(
        default=False, metadata={"help": "Accepted from TRL's configurations; rows of prompt trees have no padding."}
    )
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={"help": "One loss, or several to be added: " + ", ".join(get_args(LossType))},
    )
    loss_weights: list[float] | None = field(default=None, metadata={"help": "A weight a loss. None: 1 each."})
    ld_alpha: float | None = field(
        default=None,
        metadata={"help": "Weight of tokens past the shorter completion's length (LD-DPO, arXiv:2409.06411)."},
    )
    f_divergence_type: FDivergence = field(
        default="reverse_kl",
        metadata={"help": "Divergence that holds the policy near the reference (arXiv:2309.16240)."},
    )
    f_alpha_divergence_coef: float = field(default=0.5, metadata={"help": "Alpha of alpha_divergence."})
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Assumed share of pairs labelled the wrong way round."}
    )
    use_weighting: bool = field(
        default=False, metadata={"help": "Weigh pairs by the policy's probability (WPO, arXiv:2406.11827)."}
    )
    discopop_tau: float = field(default=0.05, metadata={"help": "Temperature of discopop's blend (arXiv:2406.08414)."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        unknown = set(self.loss_type) - set(get_args(LossType))
        if unknown:
            raise ConfigError(f"loss_type={sorted(unknown)} is unknown; it can be {', '.join(get_args(LossType))}.")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ConfigError(
                f"loss_weights has {len(self.loss_weights)} values for the {len(self.loss_type)} of {self.loss_type}, "
                "not one each."
            )
        for loss_type in self.loss_type:
            if loss_type == "sft":
                continue
            try:
                check_preference_options(
                    loss_type,
                    beta=self.beta,
                    label_smoothing=self.label_smoothing,
                    f_divergence_type=self.f_divergence_type,
                    discopop_tau=self.discopop_tau,
                )
            except ValueError as error:
                raise ConfigError(str(error)) from error
        if self.use_weighting and set(self.loss_type) & set(SORTING_LOSS_TYPES):
            raise ConfigError("use_weighting=True does not go with the aot losses, which sort the pairs of a batch.")
