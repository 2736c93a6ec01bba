"""Tools called from plain text by marks, as TRL's `TextEnvironment` once had it (gone since its version 0.21).

The policy writes `<request><Tool>query<call>`, the tool's answer and `<response>` follow, and it writes on;
`<submit>` ends the text. Deviations: tools of a batch run at once, with a time limit; `max_tool_response` counts
tokens, not characters; token ids are lists, and what the engine knows of them (log-probabilities) is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from tuneline.environments.calling import Outcome
from tuneline.environments.chat import defused, shortened
from tuneline.environments.exchange import Counts, Exchange
from tuneline.environments.loop import hold
from tuneline.environments.parsing import decoded
from tuneline.environments.tools import named_tools, outcome_text
from tuneline.errors import ConfigError, RewardError
from tuneline.rollout.protocol import Rollout, RolloutEngine, Sampling, rollout_seed

REQUEST, CALL, RESPONSE, SUBMIT = "<request>", "<call>", "<response>", "<submit>"
_REQUEST = re.compile(re.escape(REQUEST) + r"\s*<([^<>]+)>(.*?)" + re.escape(CALL), re.DOTALL)


class Span(NamedTuple):
    """A part of a history, and who wrote it."""

    text: str
    source: Literal["prompt", "policy", "tool"]


@dataclass(frozen=True)
class TextHistory:
    """A text with its authors, and how it ended."""

    spans: list[Span]
    completed: bool  # the policy submitted or ended the text itself
    truncated: bool  # a limit ended it
    reward: float | None = None

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)

    @property
    def last_text_segment(self) -> str:
        """The policy's last words; empty where it wrote none since."""
        return self.spans[-1].text if self.spans[-1].source == "policy" else ""


class TextRun(NamedTuple):
    """What `TextEnvironment.run` gives; one entry a query."""

    queries: list[list[int]]  # token ids of the prompts
    responses: list[list[int]]  # token ids of all that follows
    masks: list[list[int]]  # 1 for each token of the response that the policy wrote
    rewards: list[float | None]
    histories: list[TextHistory]
    rollouts: list[Rollout]  # the same for a trainer, with log-probabilities
    counts: Counts


class TextEnvironment:
    """Text with tools: what the policy calls in the middle of its text is answered in the text.

    Args:
        tools: functions of one text, plain or async, in a mapping by name, or by their own names.
        reward_fn: `f(last_text_segments, **kwargs) -> list of rewards`, asked once all texts are complete.
        prompt: goes before every query.
        max_turns: tool calls a text.
        max_tool_response: tokens of a tool's answer; longer ones are cut, with a mark.
        max_length: tokens of query and response together; None for `sampling.max_new_tokens` after the query.
        sampling: its `max_new_tokens` holds between two calls; its stop tokens end the text.
        tool_timeout: seconds a call.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        tokenizer: PreTrainedTokenizerBase,
        tools: Iterable[Callable[..., Any]] | Mapping[str, Callable[..., Any]],
        reward_fn: Callable[..., Sequence[float | None]] | None = None,
        prompt: str = "",
        *,
        sampling: Sampling,
        max_turns: int = 4,
        max_tool_response: int | None = 100,
        max_length: int | None = None,
        tool_timeout: float | None = 60.0,
    ):
        self.engine = engine
        self.tokenizer = tokenizer
        self.tools = named_tools(tools)
        self.reward_fn = reward_fn
        self.prompt = prompt
        self.sampling = sampling
        self.max_turns = max_turns
        self.max_tool_response = max_tool_response
        self.max_length = max_length
        self.tool_timeout = tool_timeout
        self._mark_ends = _tokens_that_may_end_a_mark(tokenizer)

    def run(self, queries: Sequence[str], *, seed: int = 0, **rewards_kwargs: Any) -> TextRun:
        """Write a text for each query.

        Args:
            seed: the same one draws the same texts.
            rewards_kwargs: for `reward_fn`, one entry a query each.

        Raises:
            DataError: a query leaves no room to answer.
            RewardError: the reward function gave another number of rewards than there are queries.
            RolloutError: the engine failed.
        """
        stops = self.sampling.stop_token_ids
        texts = [TextExchange(self, self.prompt + query, stops) for query in queries]
        if any(not text.prompt_ids for text in texts):
            raise ConfigError("prompt='' and an empty query leave the policy nothing to go on from; give a prompt.")
        limit = self.sampling.max_new_tokens if self.max_length is None else self.max_length
        rollouts, counts = hold(
            self.engine,
            texts,
            [rollout_seed(seed, i) for i in range(len(texts))],
            replace(self.sampling, stop_token_ids=tuple(sorted({*stops, *self._mark_ends}))),
            max_turns=self.max_turns,
            tool_timeout=self.tool_timeout,
            max_completion_length=limit,
            max_length=self.max_length,
        )
        histories = [text.history() for text in texts]
        rewards = self._rewards(histories, rewards_kwargs)
        return TextRun(
            queries=[rollout.prompt_ids for rollout in rollouts],
            responses=[rollout.completion_ids for rollout in rollouts],
            masks=[rollout.is_target or [1] * len(rollout.completion_ids) for rollout in rollouts],
            rewards=rewards,
            histories=[replace(history, reward=reward) for history, reward in zip(histories, rewards, strict=True)],
            rollouts=rollouts,
            counts=counts,
        )

    def _rewards(self, histories: list[TextHistory], kwargs: dict[str, Any]) -> list[float | None]:
        if self.reward_fn is None:
            return [None] * len(histories)
        rewards = list(self.reward_fn([history.last_text_segment for history in histories], **kwargs))
        if len(rewards) != len(histories):
            raise RewardError(f"reward_fn gave {len(rewards)} rewards for {len(histories)} texts; give one a text.")
        return rewards


class TextExchange(Exchange):
    """One text; the policy stops at each token that may end a mark, and goes on where it was none."""

    def __init__(self, environment: TextEnvironment, prompt: str, stop_token_ids: Sequence[int]):
        super().__init__(list(environment.tokenizer(prompt)["input_ids"]))
        self._environment = environment
        self._spans = [Span(prompt, "prompt")]
        self._stops = set(stop_token_ids)
        self._turn = ""
        self._call: Callable[[], Any] | str | None = None  # or why it cannot be made

    def pending_calls(self) -> list[Callable[[], Any]]:
        return [self._call] if callable(self._call) else []

    def take_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        if self._call is None:
            return
        outcome = outcomes[0] if callable(self._call) else None
        self._count_outcome(outcome)
        text = str(self._call) if outcome is None else outcome_text(outcome, self._environment.tool_timeout)
        tokenizer = self._environment.tokenizer
        text, was_cut = shortened(tokenizer, defused(tokenizer, text), self._environment.max_tool_response)
        self._count(shortened=int(was_cut))
        for mark in (REQUEST, CALL, RESPONSE, SUBMIT):
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        text += RESPONSE
        self._call = None
        self._append_answer(list(tokenizer(text, add_special_tokens=False)["input_ids"]), [])
        if self.waits_for_policy:
            self._spans.append(Span(text, "tool"))

    def rollout(self) -> Rollout:
        return replace(super().rollout(), messages=None)

    def history(self) -> TextHistory:
        return TextHistory(self._spans, completed=self._is_finished, truncated=not self._is_finished)

    def _read_turn(self, is_finished: bool) -> None:
        turn = self._ids[self._turn_start :]
        self._turn = decoded(self._environment.tokenizer, turn)
        submitted, called = SUBMIT in self._turn, CALL in self._turn
        ended = is_finished and turn[-1] in self._stops
        if is_finished and not (submitted or called or ended):
            if self.room < 1:
                self._spans.append(Span(self._turn, "policy"))
                self._end(finished=False)
            return  # the token that stopped it ended no mark
        self._spans.append(Span(self._turn, "policy"))
        if submitted or ended:
            self._end(finished=True)
        elif not is_finished:
            self._end(finished=False)
        elif self._may_go_on():
            self._call = self._bound_call()

    def _bound_call(self) -> Callable[[], Any] | str:
        match = _REQUEST.search(self._turn)
        if match is None:
            return f"malformed call; write {REQUEST}<tool>query{CALL}"
        name, query = match.groups()
        if name not in self._environment.tools:
            return f"unknown tool {name!r}; the tools are {', '.join(self._environment.tools)}"
        return partial(self._environment.tools[name], query)


def _tokens_that_may_end_a_mark(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Where the policy must be looked at: a mark may be one token or many, and the last of them holds a '>'."""
    whole = tokenizer.convert_tokens_to_ids([CALL, SUBMIT])
    if all(isinstance(i, int) and i != tokenizer.unk_token_id for i in whole):
        return tuple(whole)
    return tuple(sorted(i for token, i in tokenizer.get_vocab().items() if ">" in token))
