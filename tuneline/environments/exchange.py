"""One conversation with the policy: what was said so far in tokens, whose turn it is, and why it ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import add
from typing import Any

from tuneline.data.formats import Messages
from tuneline.environments.calling import Outcome
from tuneline.environments.chat import ChatFormat, defused, shortened
from tuneline.environments.members import Responder
from tuneline.environments.parsing import Reply
from tuneline.environments.tools import Tools, bind_call, error_text, outcome_text
from tuneline.errors import DataError, RolloutError
from tuneline.rollout.protocol import Completion, Rollout


@dataclass(frozen=True)
class Counts:
    """What happened in a batch of conversations."""

    conversations: int = 0
    calls: int = 0  # of tools, well-formed or not; and answers asked of an environment
    failures: int = 0  # calls that ended in an error message
    timeouts: int = 0  # of those, the ones that took too long
    shortened: int = 0  # outputs longer than the limit
    not_fitting: int = 0  # conversations that an answer without room ended
    out_of_turns: int = 0  # conversations that still called a tool after their last turn
    cut_off: int = 0  # conversations that any limit ended

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(add, vars(self).values(), vars(other).values()))

    def metrics(self) -> dict[str, float]:
        """Under TRL's names: calls a conversation, and the share of calls that failed."""
        return {
            "tools/call_frequency": self.calls / self.conversations if self.conversations else 0.0,
            "tools/failure_frequency": self.failures / self.calls if self.calls else 0.0,
        }

    def summary(self) -> str:
        return (
            f"{self.calls} calls in {self.conversations} conversations, {self.failures} failed ({self.timeouts} timed "
            f"out), {self.shortened} outputs cut; {self.cut_off} conversations ended at a limit ({self.not_fitting} "
            f"for an answer that did not fit, {self.out_of_turns} at their last turn)"
        )


class Exchange(ABC):
    """The state of one conversation; how turns are read and answered is up to its notation."""

    def __init__(self, prompt_ids: list[int]):
        self.prompt_ids = prompt_ids
        self.messages: Messages = []
        self.counts = Counts(conversations=1)
        self.num_draws = 0  # of the engine
        self.waits_for_policy = True
        self._is_finished = False
        self._num_turns = 0
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._is_target: list[int] = []
        self._support: list[list[int]] = []
        self._cuts_support = False
        self._turn_start = 0
        self._limit = 0
        self._max_turns: int | None = None

    @property
    def ids(self) -> list[int]:
        """All tokens so far: what the policy goes on from."""
        return self.prompt_ids + self._ids

    @property
    def room(self) -> int:
        """Tokens that may still be written."""
        return self._limit - len(self._ids)

    def set_limits(self, max_completion_length: int, max_length: int | None, max_turns: int | None) -> None:
        """
        Raises:
            DataError: the prompt leaves no room for an answer.
        """
        self._max_turns = max_turns
        self._limit = max_completion_length
        if max_length is not None:
            self._limit = min(self._limit, max_length - len(self.prompt_ids))
        if self._limit < 1:
            raise DataError(
                f"A prompt has {len(self.prompt_ids)} tokens, which leaves no room to answer (max_length={max_length}, "
                f"max_completion_length={max_completion_length}); take out long prompts or raise the limit."
            )

    def take_completion(self, completion: Completion) -> None:
        """Put what the policy wrote behind the rest, and see what it wants."""
        if len(completion.ids) > self.room or len(completion.ids) != len(completion.logprobs):
            raise RolloutError(
                f"The engine gave {len(completion.ids)} tokens with {len(completion.logprobs)} log-probabilities where "
                f"at most {self.room} were asked for."
            )
        self.num_draws += 1
        self._ids += completion.ids
        self._logprobs += completion.logprobs
        self._is_target += [1] * len(completion.ids)
        self._cuts_support |= completion.support is not None
        self._support += completion.support or [[]] * len(completion.ids)
        self._read_turn(completion.is_finished)

    @abstractmethod
    def pending_calls(self) -> list[Callable[[], Any]]:
        """The calls that can be made, of those that the policy's turn asks for."""

    @abstractmethod
    def take_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Put the answers behind the policy's turn; `outcomes` are those of `pending_calls`, in order."""

    def rollout(self) -> Rollout:
        return Rollout(
            prompt_ids=self.prompt_ids,
            completion_ids=self._ids,
            logprobs=self._logprobs,
            is_finished=self._is_finished,
            is_target=None if all(self._is_target) else self._is_target,
            support=self._support if self._cuts_support else None,
            messages=self.messages,
        )

    @abstractmethod
    def _read_turn(self, is_finished: bool) -> None:
        """Read the tokens since `_turn_start`."""

    def _end(self, *, finished: bool, **counted: int) -> None:
        self.waits_for_policy = False
        self._is_finished = finished
        self._count(cut_off=int(not finished), **counted)

    def _count(self, **counted: int) -> None:
        self.counts += Counts(**counted)

    def _may_go_on(self) -> bool:
        """Whether another turn is allowed; if not, this ends the conversation."""
        if self._max_turns is not None and self._num_turns >= self._max_turns:
            self._end(finished=False, out_of_turns=1)
            return False
        self._num_turns += 1
        return True

    def _append_answer(self, ids: list[int], messages: Messages) -> None:
        """What the environment wrote: whole, with room left for a token of the policy, or not at all."""
        if len(ids) >= self.room:
            self._end(finished=False, not_fitting=1)
            return
        self._ids += ids
        self._logprobs += [0.0] * len(ids)
        self._is_target += [0] * len(ids)
        self._support += [[]] * len(ids)
        self.messages += messages
        self._turn_start = len(self._ids)

    def _count_outcome(self, outcome: Outcome | None) -> None:
        """Count a call; None for one that could not be made."""
        failed = outcome is None or outcome.error is not None
        timed_out = outcome is not None and outcome.timed_out
        self._count(calls=1, failures=int(failed), timeouts=int(timed_out))


class ChatExchange(Exchange):
    """A conversation in messages, written by a chat template.

    Args:
        prompt_ids: the prompt, with the mark that opens the policy's turn.
        tools, schemas: what the policy may call, and what it is told of it.
        responder: answers turns that call no tool.
    """

    def __init__(
        self,
        chat: ChatFormat,
        prompt_ids: list[int],
        tools: Tools,
        schemas: list[dict[str, Any]],
        *,
        responder: Responder | None,
        max_tool_output_tokens: int | None,
        tool_timeout: float | None,
    ):
        super().__init__(prompt_ids)
        self._chat = chat
        self._tools = tools
        self._schemas = schemas
        self._responder = responder
        self._max_output = max_tool_output_tokens
        self._timeout = tool_timeout
        self._reply = Reply("")
        self._bound: list[Callable[[], Any] | str] = []  # a call, or why it cannot be made

    def pending_calls(self) -> list[Callable[[], Any]]:
        return [bound for bound in self._bound if not isinstance(bound, str)]

    def take_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        if not self._bound:
            return
        arrived = iter(outcomes)
        settled = [None if isinstance(bound, str) else next(arrived) for bound in self._bound]
        for outcome in settled:
            self._count_outcome(outcome)
        if self._reply.calls:
            self._answer_calls(settled)
        else:
            self._answer_words(settled[0])
        self._bound = []

    def _read_turn(self, is_finished: bool) -> None:
        turn = self._ids[self._turn_start :]
        prefix = self.prompt_ids + self._ids[: self._turn_start]
        self._reply = self._chat.read(prefix, turn, self._schemas if self._tools else [])
        self.messages.append(self._reply.as_message())
        if not is_finished:
            self._end(finished=False)  # half a turn is no call
        elif self._reply.calls and self._tools:
            if self._may_go_on():
                self._bound = [bind_call(self._tools, call) for call in self._reply.calls]
        elif self._responder is not None:
            if self._may_go_on():
                self._bound = [partial(self._responder.respond, self._reply.content)]
        else:
            self._end(finished=True)

    def _answer_calls(self, outcomes: Sequence[Outcome | None]) -> None:
        messages = []
        for call, bound, outcome in zip(self._reply.calls, self._bound, outcomes, strict=True):
            text = error_text(str(bound)) if outcome is None else outcome_text(outcome, self._timeout)
            messages.append({"role": "tool", "name": call.name, "content": self._limited(text)})
        self._append_answer(self._chat.suffix_ids(messages, [call.name for call in self._reply.calls]), messages)

    def _answer_words(self, outcome: Outcome | None) -> None:
        assert outcome is not None
        if outcome.error is None and outcome.value is None:
            self._end(finished=True)
            return
        message = {"role": "user", "content": self._limited(outcome_text(outcome, self._timeout))}
        self._append_answer(self._chat.suffix_ids([message]), [message])

    def _limited(self, text: str) -> str:
        text, was_cut = shortened(self._chat.tokenizer, defused(self._chat.tokenizer, text), self._max_output)
        self._count(shortened=int(was_cut))
        return text
