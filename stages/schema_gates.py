"""The section `gates`: what has to hold before a stage begins, or a stage fails at once with the reason."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stages.schema_base import Count, Section, Share


class GatesSection(Section):
    """Limits that stages check on what they are given. By default only what is broken is stopped."""

    reward_accuracy: Share | None = Field(
        default=0.5,
        description="Least share of held-out pairs that the line's reward model has to rank rightly before ppo or grpo "
        "learn from it and evaluate takes the best of n by it; null checks nothing.",
    )
    same_tokenizer: bool = Field(
        default=True,
        description="Whether policy and reward models must read alike: one vocabulary, one end token, the same tokens "
        "for the first prompts.",
    )
    dpo_first_loss: Annotated[float, Field(ge=0)] | None = Field(
        default=0.05,
        description="How far from ln 2 the DPO loss of a pair of the first batch may be, in nats, while policy and "
        "reference are the same; null checks nothing.",
    )
    logprob_difference: Annotated[float, Field(ge=0)] | None = Field(
        default=0.1,
        description="How far apart sampler and trainer may be in the first generation: the mean absolute difference "
        "of a token's log-probability, in nats; null checks nothing.",
    )
    ended_answers: Share | None = Field(
        default=0.05,
        description="Least share of the SFT model's answers that have to end by themselves before dpo, ppo and grpo go "
        "on from it; null checks nothing.",
    )
    ended_answers_prompts: Count = Field(
        default=32, description="On how many prompts dpo checks that; ppo and grpo look at their first generation."
    )
    ended_answers_tokens: Count = Field(
        default=256, description="In how many tokens such an answer has to end, where the model reads as many."
    )
