"""Tools and environments of one training run: checked before it begins, kept between its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from tuneline.data.formats import is_messages
from tuneline.environments.calling import ConcurrentCalls
from tuneline.environments.chat import ChatFormat
from tuneline.environments.exchange import Counts
from tuneline.environments.loop import run_conversations
from tuneline.environments.parsing import ReplyParser
from tuneline.environments.pool import EnvironmentFactory, EnvironmentPool
from tuneline.environments.tools import named_tools, tool_schemas
from tuneline.errors import DataError
from tuneline.logging import get_logger
from tuneline.rollout.protocol import Rollout, RolloutEngine, Sampling

logger = get_logger(__name__)


class Interactions(NamedTuple):
    """What a batch gave; one entry a row."""

    rollouts: list[Rollout]
    environments: list[Any] | None  # for the reward functions; None where there are none
    counts: Counts


class Interaction:
    """What a trainer holds conversations with.

    Args:
        stop_token_ids: those of the sampling, which end the policy's turns.
        tools: plain or async functions with type hints and a docstring.
        environment_factory: makes an environment for a rollout; or several by name, for rows with a column
            `environment`.
        max_tool_calling_iterations: rounds of tool calls or answers a conversation; None for no limit.
        max_tool_output_tokens: longer outputs are cut, with a mark.
        tool_timeout: seconds a call.
        environment_timeout: seconds for making an environment, and for a reset.

    Raises:
        ConfigError: a tool without a name or schema, or what is no environment.
        ModelError: a chat template that cannot continue a conversation.
        RolloutError: an environment could not be made.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Sequence[int],
        *,
        tools: Iterable[Callable[..., Any]] | None = None,
        environment_factory: EnvironmentFactory | Mapping[str, EnvironmentFactory] | None = None,
        max_tool_calling_iterations: int | None = None,
        max_tool_output_tokens: int | None = 1024,
        tool_timeout: float | None = 60.0,
        environment_timeout: float | None = 300.0,
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        parser: ReplyParser | None = None,
    ):
        self.tokenizer = tokenizer
        self.tools = list(tools or ())
        self.max_turns = max_tool_calling_iterations
        self.max_tool_output_tokens = max_tool_output_tokens
        self.tool_timeout = tool_timeout
        self.chat_template = chat_template
        self.chat_template_kwargs = chat_template_kwargs
        self.parser = parser
        tool_schemas(named_tools(self.tools))
        chat = ChatFormat(
            tokenizer, stop_token_ids, chat_template=chat_template, chat_template_kwargs=chat_template_kwargs
        )
        self._calls = ConcurrentCalls()
        self.pool: EnvironmentPool | None = None
        if environment_factory is not None:
            self.pool = EnvironmentPool(environment_factory, self._calls, timeout=environment_timeout)
            for methods in self.pool.tools().values():
                tool_schemas(named_tools([*self.tools, *methods.values()]))
        has_tools = bool(self.tools) or (self.pool is not None and self.pool.has_tools)
        chat.check(has_tools=has_tools, answers_as_user=self.pool is not None and self.pool.has_responders)
        if has_tools and not chat.shows_tools():
            logger.warning(
                "The chat template does not show the tools' schemas: unless the prompts describe the tools, the policy "
                "does not know of them."
            )

    @property
    def reward_functions(self) -> list[Callable[..., Any]]:
        """The rewards that environments give themselves, to go after those of the user, with weight 1."""
        return [] if self.pool is None else self.pool.reward_functions()

    def run(
        self,
        engine: RolloutEngine,
        rows: Sequence[Mapping[str, Any]],
        seeds: Sequence[int],
        sampling: Sampling,
        *,
        max_completion_length: int | None = None,
        max_length: int | None = None,
    ) -> Interactions:
        """A conversation for each row; rows of one group are repeated by the caller, each with its own seed.

        Args:
            rows: with a `prompt` of messages; environments are reset with all of their columns.

        Raises:
            DataError: a prompt that is no list of messages, leaves no room, or names no known environment.
            RolloutError: the engine or a reset failed.
        """
        for row in rows:
            if not is_messages(row["prompt"]):
                raise DataError(
                    f"With tools or environments a prompt is a list of messages, and one is "
                    f"{str(row['prompt'])[:80]!r}; write it as [{{'role': 'user', 'content': ...}}]."
                )
        prompts = [list(row["prompt"]) for row in rows]
        environments = None
        if self.pool is not None:
            environments = self.pool.acquire(rows)
            prompts = self.pool.reset(environments, rows, prompts)
        rollouts, counts = run_conversations(
            engine,
            self.tokenizer,
            prompts,
            seeds,
            sampling,
            tools=self.tools,
            environments=environments,
            max_turns=self.max_turns,
            max_tool_output_tokens=self.max_tool_output_tokens,
            tool_timeout=self.tool_timeout,
            max_completion_length=max_completion_length,
            max_length=max_length,
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
            parser=self.parser,
            calls=self._calls,
        )
        return Interactions(rollouts, environments, counts)

    def close(self) -> None:
        """End what runs the tools."""
        self._calls.close()
