"""Preference collection: completions of a policy, and who says which is better."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.schema_base import Count, Section, Share


class JudgeSection(Section):
    """A judge behind an address: a server of one's own, or a chat model that speaks OpenAI's protocol."""

    url: str | None = Field(
        default=None,
        description="Where `prompts` and `completions` are sent by POST, and `verdicts` (0, 1 or null) come back.",
    )
    base_url: str | None = Field(
        default=None, description="Of a server that speaks OpenAI's protocol, such as http://127.0.0.1:8000/v1."
    )
    model: str | None = Field(default=None, description="The chat model's name on that server.")
    system_prompt: str | None = Field(
        default=None,
        description="What the chat model is asked, with {prompt}, {response0} and {response1}; null: tuneline's own.",
    )
    token_variable: str | None = Field(
        default=None, description="The environment variable that holds the token, if the server wants one."
    )
    timeout: Annotated[float, Field(gt=0)] = Field(default=60.0, description="Seconds that one answer may take.")

    @model_validator(mode="after")
    def _one_server(self) -> JudgeSection:
        if (self.url is None) == (self.base_url is None):
            raise ValueError("needs exactly one of url and base_url")
        if (self.base_url is None) != (self.model is None):
            raise ValueError("model goes with base_url, and each needs the other")
        if self.url is not None and self.system_prompt is not None:
            raise ValueError("system_prompt goes with base_url; a server behind url has its own")
        return self


class CollectSection(Section):
    """Pairs of completions of a policy, labelled; `tuneline rounds` learns from them."""

    policy: Literal["newest", "sft", "dpo", "ppo", "grpo"] = Field(
        default="newest", description="Whose completions; newest: of ppo, grpo, dpo and sft the first that is not off."
    )
    labels: Literal["verifier", "reward", "judge", "person"] = Field(
        default="person",
        description="Who says which is better: a verifier, the line's reward model, a judge, or people on the page of "
        "`tuneline collect serve`.",
    )
    num_prompts: Count = Field(default=64, description="Prompts to answer, drawn from those of PPO and GRPO.")
    num_completions: Annotated[int, Field(ge=2)] = Field(
        default=4, description="Completions a prompt; those that repeat another of it, or are empty, are dropped."
    )
    pairs_per_prompt: Count = Field(
        default=1,
        description="Pairs a prompt at most; with scores (verifier, reward) those that lie furthest apart come first.",
    )
    temperature: Annotated[float, Field(gt=0)] = Field(default=1.0, description="Of sampling.")
    max_new_tokens: Count = Field(default=256, description="Completions are cut off at this length.")
    batch_size: Count = Field(default=16, description="Prompts generated at once; changes speed only.")
    verifier: str | None = Field(
        default=None,
        description="What verifies: a reward, named as in grpo.rewards; null: equality with the solution.",
    )
    margin: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Scores of verifier or reward model that are at most this far apart are a tie."
    )
    judge: JudgeSection | None = Field(default=None, description="The judge, for `labels: judge`.")
    shared_share: Share = Field(
        default=0.2, description="Of the pairs, those shown to every annotator, which tell how far they agree."
    )
    min_labels: Count | None = Field(
        default=None, description="Answered pairs after which a round goes on with people's labels; null: all pairs."
    )
    round: Count = Field(default=1, description="Of the loop; `tuneline rounds` sets it. Each draws other prompts.")

    @model_validator(mode="after")
    def _judge_fits(self) -> CollectSection:
        if (self.labels == "judge") != (self.judge is not None):
            raise ValueError("`labels: judge` and a `judge` section go together")
        if self.labels != "verifier" and self.verifier is not None:
            raise ValueError("verifier goes with `labels: verifier`")
        return self
