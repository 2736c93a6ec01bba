"""Turns as a chat template writes them, in tokens.

What the policy wrote stays the ids that it wrote. After it come only the tokens that the template adds for an answer
and for opening the next turn: they are what follows a dummy assistant message when the template renders it with the
answer behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.formats import Messages, render_dialogue
from tuneline.data.rendering import REFUSALS, require_template
from tuneline.environments.parsing import Reply, ReplyParser, reply_parser
from tuneline.errors import DataError, ModelError

_MARK = "WORDS-OF-THE-ASSISTANT"  # found again in what the template renders
_PROBE = "ANSWER-OF-A-TOOL"
_PROBE_TOOL = "probe"


class ChatFormat:
    """How prompts, replies and answers are written with one tokenizer.

    Args:
        stop_token_ids: tokens that end the policy's turn; where the template writes one, the policy has written it.
        parser: reads tool calls; None for the one that goes with the tokenizer.
        chat_template: in place of the tokenizer's own.

    Raises:
        ModelError: there is no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Sequence[int],
        *,
        parser: ReplyParser | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        require_template(tokenizer, chat_template)
        self.tokenizer = tokenizer
        self.stop_token_ids = tuple(stop_token_ids)
        self.parser = parser if parser is not None else reply_parser(tokenizer)
        self.options = dict(chat_template_kwargs or {})
        self._suffixes: dict[tuple[str, ...], list[int]] = {}  # those of this batch: answers come again
        if chat_template is not None:
            self.options["chat_template"] = chat_template

    def check(self, *, has_tools: bool, answers_as_user: bool = False) -> None:
        """Whether answers can be put behind the policy's words; before anything is generated.

        Raises:
            ModelError: the template refuses tools or leaves their answers out, or writes an assistant's message
                otherwise once something follows it.
        """
        probes = []
        if has_tools:
            probes.append(({"role": "tool", "name": _PROBE_TOOL, "content": _PROBE}, [_PROBE_TOOL]))
        if answers_as_user:
            probes.append(({"role": "user", "content": _PROBE}, []))
        for message, calls in probes:
            if _PROBE not in self._suffix([message], calls):
                raise ModelError(
                    f"The chat template leaves out messages of the role {message['role']!r}, so the policy would never "
                    "read an answer; give a template that renders them, with chat_template or chat_template_path."
                )

    def shows_tools(self) -> bool:
        """Whether the template puts the tools' schemas into the prompt."""
        function = {"name": _PROBE_TOOL, "description": _PROBE, "parameters": {"type": "object", "properties": {}}}
        schema = {"type": "function", "function": function}
        messages = [{"role": "user", "content": "question"}]
        shown = render_dialogue(self.tokenizer, messages, tools=[schema], **self.options)
        return _PROBE in shown or _PROBE_TOOL in shown

    def prompt_ids(self, messages: Messages, schemas: list[dict[str, Any]]) -> list[int]:
        """A prompt in tokens, with the tools' schemas and the mark that opens the policy's turn.

        Raises:
            DataError: the template does not take the messages.
        """
        continues = messages[-1]["role"] == "assistant"
        turn = {"continue_final_message": True} if continues else {"add_generation_prompt": True}
        try:
            text = render_dialogue(self.tokenizer, messages, tools=schemas or None, **turn, **self.options)
        except REFUSALS as error:
            raise DataError(f"The chat template does not take the prompt {str(messages)[:200]}: {error}") from error
        return self._ids(text)

    def read(self, prefix_ids: Sequence[int], ids: Sequence[int], schemas: list[dict[str, Any]]) -> Reply:
        """A turn of the policy, as words and calls."""
        return self.parser(self.tokenizer, prefix_ids, ids, schemas)

    def suffix_ids(self, messages: Messages, calls: Sequence[str] = ()) -> list[int]:
        """The tokens that bring messages to the policy after its turn, and open its next one.

        Args:
            messages: of tools, or of the user.
            calls: names of the tools that the turn called; some templates write an answer's head from them.

        Raises:
            ModelError: the template cannot write them without touching the policy's own words.
        """
        key = (repr(messages), *calls)
        if key not in self._suffixes:
            self._suffixes[key] = self._ids(self._suffix(messages, calls))
        return self._suffixes[key]

    def _suffix(self, messages: Messages, calls: Sequence[str]) -> str:
        reasons = []
        for reply in _dummies(calls):
            start = [{"role": "user", "content": "question"}, reply]
            try:
                alone = render_dialogue(self.tokenizer, start, **self.options)
                answered = render_dialogue(
                    self.tokenizer, [*start, *messages], add_generation_prompt=True, **self.options
                )
            except REFUSALS as error:
                reasons.append(f"the template refuses it ({error})")
                continue
            _, found, behind = alone.rpartition(_MARK)
            _, found_again, behind_answered = answered.rpartition(_MARK)
            if not found or not found_again:
                reasons.append("the template leaves out the assistant's words")
            elif not behind_answered.startswith(behind):
                reasons.append(f"after the assistant's words it writes {behind!r}; with an answer, {behind_answered!r}")
            else:
                return behind_answered[self._length_written_by_policy(behind) :]
        raise ModelError(
            "The chat template cannot continue a conversation after a turn of the assistant without rewriting it: "
            f"{'; '.join(dict.fromkeys(reasons))}. Give a template that takes tool calls and messages of tools, and "
            "renders a message the same whatever follows it (chat_template, or chat_template_path in training)."
        )

    def _length_written_by_policy(self, behind: str) -> int:
        """How much of what closes the turn the policy has written itself: all up to its stop token."""
        ends = [0]
        for token in self.stop_token_ids:
            text = self.tokenizer.convert_ids_to_tokens(token)
            if isinstance(text, str) and text in behind:
                ends.append(behind.rindex(text) + len(text))
        return max(ends) or len(behind)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _dummies(calls: Sequence[str]) -> list[dict[str, Any]]:
    """Assistant messages to put an answer behind, the closest to the real one first: templates that write calls take
    their arguments as an object or as JSON, and the simplest write words alone."""
    plain = {"role": "assistant", "content": _MARK}
    if not calls:
        return [plain]
    dummies = []
    for arguments in ({"mark": _MARK}, f'{{"mark": "{_MARK}"}}'):
        parts = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name in calls]
        dummies.append({**plain, "tool_calls": parts})
    return [*dummies, plain]


def defused(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """An environment's text in which no special token is left: it cannot end its message and speak for another role."""
    for token in tokenizer.all_special_tokens:
        if token and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def shortened(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int | None) -> tuple[str, bool]:
    """The text, cut to a number of tokens with a mark that says so; and whether it was cut."""
    if max_tokens is None or len(text) <= max_tokens:  # no token is shorter than a character
        return text, False
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) <= max_tokens:
        return text, False
    kept = tokenizer.decode(ids[:max_tokens])
    assert isinstance(kept, str)
    return f"{kept.rstrip(chr(0xFFFD))} [cut off: {max_tokens} of {len(ids)} tokens]", True
