"""Rows of text and messages as token ids, a batch at a time, as TRL 1.16 renders them.

Strings are tokenised with the tokenizer's special tokens; messages go through the chat template, which brings its own.
A completion begins where the tokens of prompt and completion depart from those of the prompt alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from tuneline.data.formats import Messages, common_prefix_length, is_messages, is_sharegpt, render_dialogue, to_messages
from tuneline.errors import DataError, ModelError

REFUSALS = (jinja2.TemplateError, ValueError, TypeError, KeyError)  # what templates raise at what they do not take
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rows:
    """A batch of a dataset's rows, with the number of each row for error messages."""

    columns: Mapping[str, list]
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def texts_or_messages(self, column: str) -> list[str | Messages]:
        """A column of strings or dialogues (ShareGPT's included).

        Raises:
            DataError: a value is neither, or an empty dialogue.
        """
        values: list[str | Messages] = []
        for i, value in enumerate(self.columns[column]):
            if isinstance(value, str):
                values.append(value)
            elif is_messages(value) or is_sharegpt(value):
                values.append(to_messages(value))
            else:
                raise self.error(i, column, f"is {_shown(value)}, which is neither text nor a list of messages")
        return values

    def joined(self, first: str, second: str) -> list[str | Messages]:
        """Two columns as one, such as prompts and their completions."""
        pairs = zip(self.texts_or_messages(first), self.texts_or_messages(second), strict=True)
        both: list[str | Messages] = []
        for i, (head, tail) in enumerate(pairs):
            match head, tail:
                case str(), str():
                    both.append(head + tail)
                case list(), list():
                    both.append(head + tail)
                case _:
                    problem = f"is {_shown(tail)} and {first!r} is {_shown(head)}; give both in one notation"
                    raise self.error(i, second, problem)
        return both

    def template_arguments(self, chat_template: str | None) -> list[dict[str, Any]]:
        """What each row gives to the chat template: its `tools` (a list, or JSON) and its `chat_template_kwargs`."""
        arguments: list[dict[str, Any]] = []
        for i in range(len(self)):
            row: dict[str, Any] = {} if chat_template is None else {"chat_template": chat_template}
            tools = self.columns["tools"][i] if "tools" in self.columns else None
            try:
                tools = json.loads(tools) if isinstance(tools, str) and tools else tools
            except json.JSONDecodeError as error:
                raise self.error(i, "tools", f"is not JSON ({error})") from None
            if tools:
                row["tools"] = tools
            if "chat_template_kwargs" in self.columns:
                given = self.columns["chat_template_kwargs"][i] or {}
                row |= {name: value for name, value in given.items() if value is not None}
            arguments.append(row)
        return arguments

    def error(self, i: int, column: str, problem: str) -> DataError:
        return DataError(f"Row {self.numbers[i]} of the dataset: {column!r} {problem}.")


def tokenize_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: Any) -> list[list[int]]:
    """Token ids of strings, all in one call, so that a fast tokenizer uses its threads."""
    if not texts:
        return []
    return tokenizer(list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False, **options)[
        "input_ids"
    ]


def tokenize_values(
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    values: Sequence[str | Messages],
    *,
    eos_token: str | None = None,
    add_generation_prompt: bool = False,
    chat_template: str | None = None,
) -> list[list[int]]:
    """Token ids of strings and dialogues in any mixture.

    Args:
        values: one a row.
        eos_token: put at the end of strings that do not end with it; dialogues end as their template has them end.
    """
    texts = {i: value for i, value in enumerate(values) if isinstance(value, str)}
    if eos_token is not None:
        texts = {i: text if text.endswith(eos_token) else text + eos_token for i, text in texts.items()}
    dialogues = [i for i, value in enumerate(values) if not isinstance(value, str)]
    rendered = render(tokenizer, rows, values, dialogues, add_generation_prompt, chat_template) if dialogues else []
    ids: list[list[int]] = [[]] * len(values)
    for i, tokens in zip(texts, tokenize_texts(tokenizer, list(texts.values())), strict=True):
        ids[i] = tokens
    for i, tokens in zip(dialogues, tokenize_texts(tokenizer, rendered, add_special_tokens=False), strict=True):
        ids[i] = tokens
    return ids


def render(
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    values: Sequence[Any],
    which: Sequence[int],
    add_generation_prompt: bool,
    chat_template: str | None,
) -> list[str]:
    """The dialogues among `values` that `which` names, as text.

    Raises:
        ModelError: the tokenizer has no chat template.
        DataError: the template refuses a dialogue.
    """
    require_template(tokenizer, chat_template)
    arguments = rows.template_arguments(chat_template)
    texts = []
    for i in which:
        try:
            options = {"add_generation_prompt": add_generation_prompt, **arguments[i]}
            texts.append(render_dialogue(tokenizer, values[i], **options))
        except REFUSALS as error:
            raise refused(rows, i, error) from error
    return texts


def tokenize_with_assistant_masks(
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    values: Sequence[str | Messages],
    *,
    chat_template: str | None = None,
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of dialogues, and 1 for each token that the template marks as generated by the assistant.

    Raises:
        ModelError: the chat template has no `{% generation %}` marks.
        DataError: a value is no dialogue, or the template refuses it.
    """
    template = require_template(tokenizer, chat_template)
    if not has_generation_markers(template):
        raise no_generation_marks()
    alike: dict[str, list[int]] = {}  # rows that give the template the same arguments go in one call
    arguments = rows.template_arguments(chat_template)
    for i, given in enumerate(arguments):
        if isinstance(values[i], str):
            raise rows.error(i, "text", "is plain text, and assistant_only_loss=True needs messages")
        alike.setdefault(json.dumps(given, sort_keys=True, default=str), []).append(i)
    ids: list[list[int]] = [[]] * len(values)
    masks: list[list[int]] = [[]] * len(values)
    for which in alike.values():
        encoded = _encoded(tokenizer, rows, values, which, arguments[which[0]])
        for i, tokens, mask in zip(which, encoded["input_ids"], encoded["assistant_masks"], strict=True):
            ids[i], masks[i] = tokens, mask
    return ids, masks


def _encoded(
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    values: Sequence[Any],
    which: Sequence[int],
    arguments: Mapping[str, Any],
) -> Any:
    """The dialogues that `which` names, as token ids and masks; one that the template refuses is told by its row."""
    options = {**arguments, "return_dict": True, "return_assistant_tokens_mask": True}
    try:
        return tokenizer.apply_chat_template([values[i] for i in which], **options)
    except REFUSALS:
        for i in which:
            try:
                tokenizer.apply_chat_template([values[i]], **options)
            except REFUSALS as error:
                raise refused(rows, i, error) from error
        raise


def has_generation_markers(chat_template: str | Mapping[str, str]) -> bool:
    """Whether a chat template marks what the assistant says; of several by name, the default one is looked at."""
    text = chat_template if isinstance(chat_template, str) else chat_template["default"]
    return _GENERATION_MARK.search(text) is not None


def require_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> str:
    """The chat template in use.

    Raises:
        ModelError: there is none.
    """
    if chat_template is None and tokenizer.chat_template is None:
        raise no_template()
    return tokenizer.get_chat_template(chat_template)


def require_eos(tokenizer: PreTrainedTokenizerBase, eos_token: str | None) -> str:
    """The text that ends a completion.

    Raises:
        ModelError: neither an argument nor the tokenizer names one, or it is no token of the vocabulary.
    """
    eos = eos_token if eos_token is not None else tokenizer.eos_token
    if eos is None:
        raise ModelError(
            "The tokenizer has no EOS token, so a model would never learn to stop; name one with eos_token."
        )
    unknown = None if eos == tokenizer.unk_token else tokenizer.unk_token_id  # GPT-2 and Qwen2 have one token for both
    if tokenizer.convert_tokens_to_ids(eos) in (None, unknown):
        raise ModelError(f"eos_token={eos!r} is no token of the tokenizer's vocabulary; name one that is.")
    return eos


def split_at_prompt(prompt: Sequence[int], *wholes: Sequence[int]) -> int:
    """Number of tokens of the prompt that all of its continuations begin with."""
    return min(common_prefix_length(prompt, whole) for whole in wholes)


def no_template() -> ModelError:
    return ModelError(
        "The data are dialogues and the tokenizer has no chat template; give one with chat_template_path "
        "(`model.chat_template` in a pipeline), or use columns of plain text."
    )


def no_generation_marks() -> ModelError:
    return ModelError(
        "assistant_only_loss=True needs a chat template that marks the assistant's words with {% generation %} and "
        "{% endgeneration %}, and this one has no such marks; give one with chat_template_path, or train on "
        "prompt and completion."
    )


def refused(rows: Rows, i: int, error: Exception) -> DataError:
    return DataError(f"Row {rows.numbers[i]} of the dataset: the chat template does not take its messages: {error}")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
