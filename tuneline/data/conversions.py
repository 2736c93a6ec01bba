"""Datasets of one of TRL's types as another: what a preference says as demonstrations, and so on.

| from | language modeling | prompt-only | prompt-completion | preference | unpaired preference |
|---|---|---|---|---|---|
| instruction (`instruction`, `input`, `output`) | yes | yes | itself | | |
| prompt-completion | yes | yes | itself | | |
| preference, with or without `prompt` | chosen | yes | chosen | both forms | both sides |
| unpaired preference | desirable rows | yes | desirable rows | | itself |
| stepwise supervision | right to the end | yes | right to the end | | right to the end or not |

Columns beyond those of a type stay. What a conversion leaves out is logged with its number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from tuneline.data.formats import DatasetT, column_names, is_messages, maybe_extract_prompt, unpair_preference_dataset
from tuneline.errors import ConfigError, DataError
from tuneline.logging import get_logger

logger = get_logger(__name__)

Row = dict[str, Any]

# What tells the types apart; the first whose columns are all there.
_COLUMNS_OF = {
    "stepwise supervision": ("prompt", "completions", "labels"),
    "unpaired preference": ("prompt", "completion", "label"),
    "preference": ("chosen", "rejected"),
    "prompt-completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "language modeling": ("messages",),
    "prompt-only": ("prompt",),
}


def dataset_type(dataset: DatasetT) -> str:
    """The type of a dataset, by its columns: one of TRL's, or `instruction`.

    Raises:
        DataError: the columns are those of no type.
    """
    columns = set(column_names(dataset))
    for name, needed in _COLUMNS_OF.items():
        if columns.issuperset(needed):
            return name
    if columns & {"text", "conversations"}:
        return "language modeling"
    raise DataError(
        f"The dataset has the columns {', '.join(sorted(columns))}, which are those of no known type: "
        + "; ".join(f"{name} ({', '.join(needed)})" for name, needed in _COLUMNS_OF.items())
        + "."
    )


def to_language_modeling(dataset: DatasetT) -> DatasetT:
    """Whole texts: `text` of strings, `messages` of dialogues. Raises: as `convert_dataset`."""
    if dataset_type(dataset) == "language modeling":
        return dataset
    return _mapped(to_prompt_completion(dataset), _joined, ("prompt", "completion"))


def to_prompt_only(dataset: DatasetT) -> DatasetT:
    """The prompts alone. Raises: as `convert_dataset`."""
    match dataset_type(dataset):
        case "prompt-only":
            return dataset
        case "instruction":
            dataset = to_prompt_completion(dataset)
        case "preference":
            dataset = to_preference(dataset)
        case "language modeling":
            raise _impossible("language modeling", "prompt-only")
    answers = {"completion", "completions", "chosen", "rejected", "label", "labels"} & set(column_names(dataset))
    return dataset.remove_columns(sorted(answers))


def to_prompt_completion(dataset: DatasetT) -> DatasetT:
    """Prompts with the answer to learn: the chosen, the desirable, the one whose every step is right.

    Raises: as `convert_dataset`.
    """
    match dataset_type(dataset):
        case "prompt-completion":
            return dataset
        case "instruction":
            return _mapped(dataset, _instruction, [c for c in column_names(dataset) if c in _INSTRUCTION])
        case "preference":
            return to_preference(dataset).remove_columns(["rejected"]).rename_column("chosen", "completion")
        case "unpaired preference":
            return _kept(dataset, _is_desirable).remove_columns(["label"])
        case "stepwise supervision":
            return _mapped(_kept(dataset, _is_all_right), _steps_joined, ("completions", "labels"))
        case other:
            raise _impossible(other, "prompt-completion")


def to_preference(dataset: DatasetT, *, with_prompt: bool = True) -> DatasetT:
    """Pairs with an explicit prompt, or with it at the beginning of both sides. Raises: as `convert_dataset`."""
    if (found := dataset_type(dataset)) != "preference":
        raise _impossible(found, "preference")
    has_prompt = "prompt" in column_names(dataset)
    if with_prompt:
        return dataset.map(maybe_extract_prompt)
    return _mapped(dataset, _prompt_put_back, ("prompt",)) if has_prompt else dataset


def to_unpaired_preference(dataset: DatasetT) -> DatasetT:
    """Answers, each with `label`: whether it is desirable. Raises: as `convert_dataset`."""
    match dataset_type(dataset):
        case "unpaired preference":
            return dataset
        case "preference":
            return unpair_preference_dataset(to_preference(dataset))
        case "stepwise supervision":
            return _mapped(dataset, _steps_judged, ("completions", "labels"))
        case other:
            raise _impossible(other, "unpaired preference")


def convert_dataset(dataset: DatasetT, to: str) -> DatasetT:
    """A dataset as another type.

    Args:
        to: `language modeling`, `prompt-only`, `prompt-completion`, `preference`, `implicit preference` (without a
            column `prompt`) or `unpaired preference`.

    Raises:
        ConfigError: an unknown type.
        DataError: a dataset of no known type, or of one that does not say as much.
    """
    functions: dict[str, Callable[[DatasetT], DatasetT]] = {
        "language modeling": to_language_modeling,
        "prompt-only": to_prompt_only,
        "prompt-completion": to_prompt_completion,
        "preference": to_preference,
        "implicit preference": lambda rows: to_preference(rows, with_prompt=False),
        "unpaired preference": to_unpaired_preference,
    }
    if to not in functions:
        raise ConfigError(f"to={to!r} is no type of dataset; use one of {', '.join(functions)}.")
    return functions[to](dataset)


_INSTRUCTION = ("instruction", "input", "output")


def _instruction(row: Row) -> Row:
    given = row.get("input")
    return {"prompt": f"{row['instruction']}\n\n{given}" if given else row["instruction"], "completion": row["output"]}


def _joined(row: Row) -> Row:
    whole = row["prompt"] + row["completion"]
    return {"messages": whole} if is_messages(whole) else {"text": whole}


def _prompt_put_back(row: Row) -> Row:
    return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}


def _steps_joined(row: Row) -> Row:
    return {"completion": "".join(row["completions"])}


def _steps_judged(row: Row) -> Row:
    return {**_steps_joined(row), "label": _is_all_right(row)}


def _is_desirable(row: Row) -> bool:
    return bool(row["label"])


def _is_all_right(row: Row) -> bool:
    return all(row["labels"])


def _mapped(dataset: DatasetT, function: Callable[[Row], Row], remove: Any) -> DatasetT:
    return dataset.map(function, remove_columns=list(remove))


def _kept(dataset: DatasetT, condition: Callable[[Row], bool]) -> DatasetT:
    kept = dataset.filter(condition)
    if isinstance(dataset, Dataset) and len(kept) < len(dataset):
        logger.info("left out %d of %d rows, whose answer is not one to learn", len(dataset) - len(kept), len(dataset))
    if isinstance(dataset, DatasetDict):
        for name, part in dataset.items():
            if len(kept[name]) < len(part):
                left = len(part) - len(kept[name])
                logger.info("%s: left out %d of %d rows, whose answer is not one to learn", name, left, len(part))
    if isinstance(dataset, IterableDataset | IterableDatasetDict):
        logger.info("a stream: rows whose answer is not one to learn are left out as they come")
    return kept


def _impossible(found: str, wanted: str) -> DataError:
    return DataError(f"A dataset of type {found!r} does not say enough to become one of type {wanted!r}.")
