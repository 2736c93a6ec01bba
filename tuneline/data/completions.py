"""Prompts with any number of completions as token ids: `chosen` and `rejected`, a labelled `completion`, a third side.

Strings and dialogues are tokenised, and completions cut, as `tokenize_for_preference` does it; see there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.batches import NUM_KEPT, NUM_WHOLE, REWRITTEN
from tuneline.data.formats import column_names, extract_prompt, maybe_extract_prompt, unpair_preference_dataset
from tuneline.data.rendering import Rows, require_eos, split_at_prompt, tokenize_values
from tuneline.data.tokenize import AnyDataset, Tokenized, _checked, _keeps_end, _map, _unknown_format


def tokenize_completions(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    sides: Sequence[str],
    *,
    max_length: int | None,
    max_completion_length: int | None = None,
    truncation_mode: str = "keep_start",
    required_columns: Sequence[str] = (),
    kept_columns: Sequence[str] = (),
    eos_token: str | None = None,
    chat_template: str | None = None,
    num_proc: int | None = None,
) -> Tokenized:
    """Columns `prompt_ids` and, for each of `sides`, its completion alone: `chosen_ids` for the side `chosen`.

    Args:
        sides: the columns that hold completions. Without a `prompt` column the prompt is what `chosen` and `rejected`
            begin with, and every other side has to begin with it too.
        max_length: of prompt and completion together, in tokens; None cuts nothing.
        max_completion_length: of a completion, which loses its end; None cuts nothing.
        truncation_mode: `keep_start`, which cuts completions, and drops a row whose prompt leaves no room for one; or
            `keep_end`, which cuts the beginning of the prompt.
        required_columns: further columns to keep, which the data set must have.
        kept_columns: further columns to keep, where the data set has them.

    Raises:
        DataError: a column is missing, or a row is of no known format.
        ModelError: no chat template, or no EOS token.
    """
    dataset, first = _checked(dataset)
    ready = {"prompt_ids", *(f"{side}_ids" for side in sides)} <= set(first)
    has_prompt = "prompt" in first or {"chosen", "rejected"} <= set(sides)
    known = ready or (has_prompt and set(sides) <= set(first))
    if not known or not set(required_columns) <= set(first):
        raise _unknown_format(first, " and ".join(repr(name) for name in ("prompt", *sides, *required_columns)))
    arguments = {
        "tokenizer": tokenizer,
        "sides": tuple(sides),
        "max_length": max_length,
        "max_completion_length": max_completion_length,
        "keep_end": _keeps_end(truncation_mode),
        "kept_columns": (*required_columns, *(name for name in kept_columns if name in first)),
        "eos_token": require_eos(tokenizer, eos_token) if not ready and isinstance(first[sides[0]], str) else None,
        "chat_template": chat_template,
    }
    return _map(dataset, completions_batch, arguments, num_proc)


def unpaired(dataset: AnyDataset, num_proc: int | None = None) -> AnyDataset:
    """Pairs as rows with `prompt`, `completion` and `label`; other data sets come back as they are."""
    if not {"chosen", "rejected"} <= set(column_names(dataset)):
        return dataset
    workers: dict[str, Any] = {} if num_proc is None else {"num_proc": num_proc}
    return unpair_preference_dataset(dataset.map(maybe_extract_prompt, **workers), **workers)


def completions_batch(
    batch: dict[str, list],
    indices: list[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    sides: tuple[str, ...],
    max_length: int | None,
    max_completion_length: int | None,
    keep_end: bool,
    kept_columns: tuple[str, ...],
    eos_token: str | None,
    chat_template: str | None,
    revision: int,
) -> dict[str, list]:
    names = ["prompt_ids", *(f"{side}_ids" for side in sides)]
    rewritten = [0] * len(indices)
    if set(names) <= set(batch):
        rows_of_ids = [list(row) for row in zip(*(batch[name] for name in names), strict=True)]
    else:
        rows = _with_prompt(Rows(batch, indices), sides)
        options: dict[str, Any] = {"chat_template": chat_template}
        prompts = tokenize_values(
            tokenizer, rows, rows.texts_or_messages("prompt"), add_generation_prompt=True, **options
        )
        wholes = [
            tokenize_values(tokenizer, rows, rows.joined("prompt", side), eos_token=eos_token, **options)
            for side in sides
        ]
        rows_of_ids = []
        for i, (prompt, *ids) in enumerate(zip(prompts, *wholes, strict=True)):
            shared = split_at_prompt(prompt, *ids)
            rewritten[i] = int(shared < len(prompt))
            rows_of_ids.append([prompt[:shared], *(whole[shared:] for whole in ids)])
    columns: dict[str, list] = {name: [] for name in (*names, NUM_KEPT, NUM_WHOLE)}
    for row in rows_of_ids:
        kept = _cut(row, max_length, max_completion_length, keep_end)
        for name, ids in zip(names, kept, strict=True):
            columns[name].append(ids)
        columns[NUM_KEPT].append(sum(map(len, kept)))
        columns[NUM_WHOLE].append(sum(map(len, row)))
    return columns | {REWRITTEN: rewritten} | {name: batch[name] for name in kept_columns}


def _cut(
    row: list[list[int]], max_length: int | None, max_completion_length: int | None, keep_end: bool
) -> list[list[int]]:
    """A prompt and its completions without what is too long; all empty where a completion would be."""
    prompt, *completions = row
    completions = [ids[:max_completion_length] for ids in completions]
    if max_length is not None and keep_end:
        start = max(0, len(prompt) + max(map(len, completions)) - max_length)
        prompt, completions = prompt[start:], [ids[-max_length:] for ids in completions]
    elif max_length is not None:
        completions = [ids[: max(0, max_length - len(prompt))] for ids in completions]
    return [prompt, *completions] if all(completions) else [[] for _ in row]


def _with_prompt(rows: Rows, sides: tuple[str, ...]) -> Rows:
    """The rows with an explicit prompt: what `chosen` and `rejected` begin with, where there is none."""
    if "prompt" in rows.columns:
        return rows
    columns: dict[str, list] = {name: [] for name in ("prompt", *sides)}
    for i in range(len(rows)):
        row = extract_prompt({name: rows.columns[name][i] for name in ("chosen", "rejected")})
        for side in sides:
            if side not in row:
                whole, size = rows.columns[side][i], len(row["prompt"])
                if whole[:size] != row["prompt"]:
                    raise rows.error(
                        i, side, "does not begin with the prompt that 'chosen' and 'rejected' share; give a 'prompt'"
                    )
                row[side] = whole[size:]
        for name, values in columns.items():
            values.append(row[name])
    return Rows({**rows.columns, **columns}, rows.numbers)
