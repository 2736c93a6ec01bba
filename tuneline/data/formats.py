"""The data formats of TRL, told apart and turned into one another. Names and signatures are those of TRL 1.16.

A value is *standard* (a string) or *conversational* (a list of messages with `role` and `content`); ShareGPT's `from`
and `value` are read as the latter. Deviations: roles of ShareGPT are translated too (`human` is `user`, `gpt` is
`assistant`); nothing that comes in is changed in place; fields that Arrow filled with nulls are taken out of messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import PreTrainedTokenizerBase

from tuneline.errors import DataError

DatasetT = TypeVar("DatasetT", Dataset, DatasetDict, IterableDataset, IterableDatasetDict)
Messages = list[dict[str, Any]]

CONTENT_COLUMNS = ("prompt", "completion", "chosen", "rejected", "messages")
_ROLE_OF = {"human": "user", "gpt": "assistant"}
_TEMPLATE_FORMATS = (
    {"messages"},
    {"prompt"},
    {"prompt", "completion"},
    {"prompt", "completion", "label"},
    {"prompt", "chosen", "rejected"},
    {"chosen", "rejected"},
)


def is_messages(value: Any) -> bool:
    """Whether a value is a non-empty list of messages with a role."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]


def is_sharegpt(value: Any) -> bool:
    """Whether a value is a non-empty list of messages with `from` and `value`."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], Mapping)
        and "from" in value[0]
        and "value" in value[0]
    )


def is_conversational(example: Mapping[str, Any]) -> bool:
    """Whether a row holds messages (`role`, `content`) in one of TRL's columns."""
    return any(is_messages(example.get(column)) for column in CONTENT_COLUMNS)


def is_conversational_from_value(example: Mapping[str, Any]) -> bool:
    """Whether a row holds a ShareGPT dialogue: `conversations` of messages with `from` and `value`."""
    return is_sharegpt(example.get("conversations"))


def to_messages(value: Sequence[Mapping[str, Any]]) -> Messages:
    """Messages with `role` and `content`, whichever of the two notations they came in, without fields that are null.

    A null `content` stays: chat templates expect the key, for instance beside `tool_calls`.
    """
    messages = []
    for message in value:
        translated: dict[str, Any] = {}
        for key, field in message.items():
            if key == "from":
                translated["role"] = _ROLE_OF.get(field, field)
            elif key == "value":
                translated["content"] = field
            elif field is not None or key == "content":
                translated[key] = without_nulls(field)
        messages.append(translated)
    return messages


def without_nulls(value: Any) -> Any:
    """A nested value without the null fields that Arrow adds where the rows of a column have different keys."""
    if isinstance(value, Mapping):
        return {key: without_nulls(field) for key, field in value.items() if field is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def maybe_convert_to_chatml(example: Mapping[str, Any]) -> dict[str, Any]:
    """The row with every ShareGPT dialogue as messages, and `conversations` renamed to `messages`; else unchanged."""
    converted = {
        key: to_messages(value) if key in (*CONTENT_COLUMNS, "conversations") and is_sharegpt(value) else value
        for key, value in example.items()
    }
    if "conversations" in converted:
        converted["messages"] = converted.pop("conversations")
    return converted


def extract_prompt(example: Mapping[str, Any]) -> dict[str, Any]:
    """What `chosen` and `rejected` begin with alike becomes `prompt`; both sides keep a message or character at least.

    In strings a space just before the difference goes with the completions.
    """
    chosen, rejected = example["chosen"], example["rejected"]
    shared = common_prefix_length(chosen, rejected)
    end = max(0, min(shared, len(chosen) - 1, len(rejected) - 1))
    if end and end == shared and chosen[end - 1] == " ":
        end -= 1
    return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def maybe_extract_prompt(example: Mapping[str, Any]) -> dict[str, Any]:
    """`extract_prompt` where a preference row has no prompt, or a prompt in another notation than its completions."""
    if "chosen" not in example or "rejected" not in example:
        return dict(example)
    if example.get("prompt") is not None and is_messages(example["prompt"]) == is_messages(example["chosen"]):
        return dict(example)
    return extract_prompt(example)


def as_reply(prompt: Any, text: str) -> Any:
    """A completion in the notation of its prompt: a message of the assistant, or the text itself."""
    return [{"role": "assistant", "content": text}] if is_messages(prompt) else text


def apply_chat_template(
    example: Mapping[str, Any],
    processing_class: PreTrainedTokenizerBase,
    tools: list[dict | Callable] | None = None,
    **template_kwargs: Any,
) -> dict[str, Any]:
    """A conversational row as text: `messages` becomes `text`, all other columns keep their names.

    A prompt that ends with a user or a tool gets the generation prompt; one that ends with the assistant is left open.
    Prompt and completion are rendered together, and the completion starts where that differs from the prompt alone, so
    that the prompt is always a prefix of the whole. A column `chat_template_kwargs` goes to the template.

    Raises:
        DataError: the row has none of TRL's sets of columns, or its prompt ends with another role.
    """
    columns = {column for column in (*CONTENT_COLUMNS, "label") if column in example}
    if columns not in _TEMPLATE_FORMATS:
        raise DataError(
            f"A row with the columns {sorted(columns)} is none of the known formats; "
            f"use one of {', '.join(str(sorted(known)) for known in _TEMPLATE_FORMATS)}."
        )

    def render(messages: Messages, **options: Any) -> str:
        kwargs = {**(example.get("chat_template_kwargs") or {}), **template_kwargs, **options}
        return render_dialogue(processing_class, messages, tools=tools or None, **kwargs)

    if "messages" in columns:
        return {"text": render(example["messages"])}
    sides = [column for column in ("chosen", "rejected", "completion") if column in columns]
    output: dict[str, Any] = {"label": example["label"]} if "label" in columns else {}
    if "prompt" not in columns:
        return output | {side: render(example[side]) for side in sides}

    role = example["prompt"][-1]["role"]
    if role not in ("user", "tool", "assistant"):
        raise DataError(f"A prompt ends with the role {role!r}; it has to end with a user, a tool or an assistant.")
    opens = role != "assistant"
    prompt = render(example["prompt"], add_generation_prompt=opens, continue_final_message=not opens)
    whole = {side: render(example["prompt"] + example[side]) for side in sides}
    prompt = prompt[: min(common_prefix_length(prompt, text) for text in [prompt, *whole.values()])]
    return {"prompt": prompt} | {side: text[len(prompt) :] for side, text in whole.items()} | output


def render_dialogue(tokenizer: PreTrainedTokenizerBase, messages: Messages, **options: Any) -> str:
    """A dialogue as text, by the tokenizer's chat template; `options` go to `apply_chat_template`."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    assert isinstance(text, str)
    return text


def maybe_apply_chat_template(
    example: Mapping[str, Any],
    processing_class: PreTrainedTokenizerBase,
    tools: list[dict | Callable] | None = None,
    **template_kwargs: Any,
) -> dict[str, Any]:
    """`apply_chat_template` for conversational rows; others come back as they are."""
    if is_conversational(example):
        return apply_chat_template(example, processing_class, tools, **template_kwargs)
    return dict(example)


def unpair_preference_dataset(dataset: DatasetT, **map_kwargs: Any) -> DatasetT:
    """Each batch of pairs as its chosen rows (`label` true), then its rejected ones; further columns go with both."""
    return dataset.map(_unpair, batched=True, remove_columns=column_names(dataset), **map_kwargs)


def maybe_unpair_preference_dataset(
    dataset: DatasetT, num_proc: int | None = None, desc: str | None = None
) -> DatasetT:
    """`unpair_preference_dataset` for datasets with `chosen` and `rejected`; others come back as they are."""
    if {"chosen", "rejected"} <= set(column_names(dataset)):
        return unpair_preference_dataset(dataset, num_proc=num_proc, desc=desc)
    return dataset


def column_names(dataset: Dataset | DatasetDict | IterableDataset | IterableDatasetDict) -> list[str]:
    """The columns of a dataset; a stream that does not know them is asked for its first row."""
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        dataset = next(iter(dataset.values()))
    if dataset.column_names is not None:
        return list(dataset.column_names)
    return list(next(iter(dataset), {}))


def common_prefix_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many leading items (tokens, characters, messages) two sequences have in common."""
    if second[: len(first)] == first:
        return len(first)
    return next(i for i, item in enumerate(first) if i == len(second) or item != second[i])


def _unpair(batch: dict[str, list]) -> dict[str, list]:
    size = len(batch["chosen"])
    unpaired = {name: column + column for name, column in batch.items() if name not in ("chosen", "rejected")}
    return unpaired | {
        "completion": batch["chosen"] + batch["rejected"],
        "label": [True] * size + [False] * size,
    }
