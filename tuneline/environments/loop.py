"""Conversations between the policy and its tools, as one batch.

Each conversation is a small state machine. In every round all that wait for the policy go to the engine in one call;
then all tools that they call run at once, each with a time limit; the results go back in the order of the calls. What
the policy wrote stays the token ids that it wrote, and what others wrote is no target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from tuneline.data.formats import Messages
from tuneline.environments.calling import ConcurrentCalls
from tuneline.environments.chat import ChatFormat
from tuneline.environments.exchange import ChatExchange, Counts, Exchange
from tuneline.environments.members import Responder, environment_tools
from tuneline.environments.parsing import ReplyParser
from tuneline.environments.tools import named_tools, tool_schemas
from tuneline.logging import get_logger
from tuneline.rollout.protocol import Request, Rollout, RolloutEngine, Sampling, rollout_seed

logger = get_logger(__name__)


class Conversations(NamedTuple):
    rollouts: list[Rollout]  # one a conversation, in their order
    counts: Counts


def run_conversations(
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    tools: Iterable[Callable[..., Any]] | None = None,
    environments: Sequence[Any] | None = None,
    max_turns: int | None = None,
    max_tool_output_tokens: int | None = 1024,
    tool_timeout: float | None = 60.0,
    max_completion_length: int | None = None,
    max_length: int | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    parser: ReplyParser | None = None,
    calls: ConcurrentCalls | None = None,
) -> Conversations:
    """Let the policy hold conversations until each comes to an end or to a limit.

    A turn without a tool call ends its conversation. A tool that is unknown, called wrongly, raises or takes too long
    gives an error message that the policy reads. The same weights, seeds and tools give the same conversations,
    whatever else is in the batch.

    Args:
        conversations: prompts as messages; equal ones are computed once.
        seeds: one a conversation; each turn's is drawn from it.
        sampling: its `max_new_tokens` holds for one turn.
        tools: plain or async functions with type hints and a docstring, for all conversations.
        environments: one instance a conversation, already reset; their public methods are tools, and a `Responder`
            answers the policy's words itself.
        max_turns: rounds of tool calls or answers a conversation; None for no limit.
        max_tool_output_tokens: longer outputs are cut, with a mark.
        tool_timeout: seconds a call.
        max_completion_length: tokens after the prompt, those of the tools included; None for `sampling`'s limit. An
            answer that does not fit ends the conversation, and nothing of it is kept.
        max_length: tokens with the prompt, such as the model's context; None for no limit.
        parser: reads tool calls; None for the one that goes with the tokenizer.
        calls: what runs the tools; None for one that ends with this function.

    Raises:
        ConfigError: tools without a name or schema.
        DataError: a prompt that the chat template does not take, or that leaves no room to answer.
        ModelError: a chat template that cannot continue a conversation.
        RolloutError: the engine failed.
    """
    shared = list(named_tools(tools).values())
    per_conversation: Sequence[Any] = [None] * len(conversations) if environments is None else environments
    tool_sets = [named_tools([*shared, *environment_tools(one).values()]) for one in per_conversation]
    chat = ChatFormat(
        tokenizer,
        sampling.stop_token_ids,
        parser=parser,
        chat_template=chat_template,
        chat_template_kwargs=chat_template_kwargs,
    )
    answers = any(isinstance(environment, Responder) for environment in per_conversation)
    chat.check(has_tools=any(tool_sets), answers_as_user=answers)
    prompts = _Prompts(chat)
    exchanges: list[Exchange] = [
        ChatExchange(
            chat,
            prompts.ids_of(prompt, named, environment),
            named,
            prompts.schemas_of(named, environment),
            responder=environment if isinstance(environment, Responder) else None,
            max_tool_output_tokens=max_tool_output_tokens,
            tool_timeout=tool_timeout,
        )
        for prompt, named, environment in zip(conversations, tool_sets, per_conversation, strict=True)
    ]
    limit = sampling.max_new_tokens if max_completion_length is None else max_completion_length
    return hold(
        engine,
        exchanges,
        seeds,
        sampling,
        max_turns=max_turns,
        tool_timeout=tool_timeout,
        max_completion_length=limit,
        max_length=max_length,
        calls=calls,
    )


def hold(
    engine: RolloutEngine,
    exchanges: Sequence[Exchange],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    max_turns: int | None,
    tool_timeout: float | None,
    max_completion_length: int,
    max_length: int | None = None,
    calls: ConcurrentCalls | None = None,
) -> Conversations:
    """The rounds themselves, whatever notation the exchanges are written in; see `run_conversations`."""
    for exchange in exchanges:
        exchange.set_limits(max_completion_length, max_length, max_turns)
    runner = calls if calls is not None else ConcurrentCalls()
    try:
        while waiting := [i for i, exchange in enumerate(exchanges) if exchange.waits_for_policy]:
            _let_policy_speak(engine, exchanges, waiting, seeds, sampling)
            pending = {i: exchanges[i].pending_calls() for i in waiting}
            outcomes = iter(runner.run([call for several in pending.values() for call in several], tool_timeout))
            for i, several in pending.items():
                exchanges[i].take_outcomes(list(islice(outcomes, len(several))))
    finally:
        if calls is None:
            runner.close()
    counts = sum((exchange.counts for exchange in exchanges), Counts())
    if counts.failures or counts.cut_off:
        logger.info("Tools: %s.", counts.summary())
    return Conversations([exchange.rollout() for exchange in exchanges], counts)


def _let_policy_speak(
    engine: RolloutEngine, exchanges: Sequence[Exchange], waiting: list[int], seeds: Sequence[int], sampling: Sampling
) -> None:
    """One call of the engine; conversations with the same tokens so far are one request."""
    groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for i in waiting:
        exchange = exchanges[i]
        groups.setdefault((tuple(exchange.ids), exchange.room), []).append(i)
    requests = [
        Request(
            ids,
            [rollout_seed(seeds[i], exchanges[i].num_draws) for i in members],
            min(room, sampling.max_new_tokens),
        )
        for (ids, room), members in groups.items()
    ]
    for members, completions in zip(groups.values(), engine.generate(requests, sampling), strict=True):
        for i, completion in zip(members, completions, strict=True):
            exchanges[i].take_completion(completion)


class _Prompts:
    """Prompts and tool schemas, each made once: a group repeats its prompt, a class of environments its tools."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self._schemas: dict[tuple, list[dict[str, Any]]] = {}
        self._ids: dict[tuple, list[int]] = {}

    def schemas_of(self, tools: dict[str, Callable[..., Any]], environment: Any) -> list[dict[str, Any]]:
        key = (type(environment), *tools)
        if key not in self._schemas:
            self._schemas[key] = tool_schemas(tools)
        return self._schemas[key]

    def ids_of(self, prompt: Messages, tools: dict[str, Callable[..., Any]], environment: Any) -> list[int]:
        key = (repr(prompt), type(environment), *tools)
        if key not in self._ids:
            self._ids[key] = self._chat.prompt_ids(prompt, self.schemas_of(tools, environment))
        return self._ids[key]
