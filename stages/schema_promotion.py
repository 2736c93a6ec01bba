"""The section `promotion`: when an evaluated policy becomes the champion of the line's registered model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stages.schema_base import Count, Name, Section


class Guards(Section):
    """What may not get worse by more than its tolerance, whatever is gained."""

    kl: Annotated[float, Field(ge=0)] | None = Field(
        default=5.0,
        description="Nats a completion by which the mean KL from the line's SFT model may rise; null guards nothing.",
    )
    length: Annotated[float, Field(ge=0)] | None = Field(
        default=0.5,
        description="Share by which the mean length of completions may grow or shrink, as 0.5 does; null guards none.",
    )
    task_accuracy: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=0.05, description="By how much the accuracy on any single task may fall; null guards nothing."
    )


class PromotionSection(Section):
    """The gate between an evaluated policy and the alias `champion` in MLflow's registry."""

    policy: Literal["last", "best", "sft", "dpo", "ppo", "grpo"] = Field(
        default="last",
        description="Which policy is a candidate: a stage's, the last of the line, or the best by the metric; the best "
        "of several on the items that decide looks better than it is.",
    )
    metric: Literal["accuracy", "reward"] = Field(
        default="accuracy",
        description="What has to rise: the share answered rightly, or the reward model's mean score for lines without "
        "known solutions.",
    )
    min_gain: float = Field(
        default=0.0,
        description="What the lower end of the gain's interval has to exceed; below 0 allows what is hardly worse.",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        default=0.95, description="Coverage of the intervals of the paired bootstrap."
    )
    num_resamples: Count = Field(default=10_000, description="Resamples of the paired bootstrap.")
    guards: Guards = Field(default_factory=Guards, description="What may not get worse.")
    first: bool = Field(
        default=False,
        description="Whether a version becomes champion where there is none to compare it with; else a person says "
        "so with `tuneline rollback --to VERSION`.",
    )
    require_approval: bool = Field(
        default=False, description="Pause before the alias moves, until a person agrees in Prefect's UI."
    )
    approval_timeout_hours: Annotated[float, Field(gt=0)] = Field(
        default=24.0, description="After so many hours without an answer the version is not promoted."
    )
    model: Name | None = Field(
        default=None, description="The registered model whose alias moves; null takes the line's name."
    )
