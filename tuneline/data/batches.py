"""What tokenising does to one batch of a dataset's rows, a function for each kind of trainer.

Each gives one row for each that came in, with the number of tokens it keeps and of those it had: a row of which nothing
is kept has empty columns, and the caller drops it. Called by `datasets` through `tuneline.data.tokenize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tuneline.data.formats import extract_prompt
from tuneline.data.images import image_token_ids
from tuneline.data.multimodal_rendering import (
    ProcessingClass,
    check_images_are_whole,
    tokenize_any,
    tokenize_any_with_masks,
)
from tuneline.data.rendering import Rows, split_at_prompt

NUM_KEPT, NUM_WHOLE, REWRITTEN = "_num_tokens_kept", "_num_tokens", "_prompt_rewritten"


def sft_batch(
    batch: dict[str, list],
    indices: list[int],
    *,
    tokenizer: ProcessingClass,
    source: str,
    max_length: int | None,
    keep_end: bool,
    completion_only_loss: bool,
    assistant_only_loss: bool,
    formatting_func: Callable[[dict[str, Any]], str] | None,
    eos_token: str | None,
    chat_template: str | None,
    revision: int,
) -> dict[str, list]:
    rows = Rows(batch, indices)
    rewritten = [0] * len(rows)
    if source == "input_ids":
        ids, targets = batch["input_ids"], _targets_given(rows, completion_only_loss)
    else:
        if source == "formatted":
            assert formatting_func is not None
            values: list[Any] = [formatting_func(_row(batch, i)) for i in range(len(rows))]
        elif source == "prompt":
            values = rows.joined("prompt", "completion")
        else:
            values = rows.texts_or_messages(source)
        if assistant_only_loss:
            ids, masks = tokenize_any_with_masks(tokenizer, rows, values, chat_template=chat_template)
        else:
            ids = tokenize_any(tokenizer, rows, values, eos_token=eos_token, chat_template=chat_template)
            masks = [[1] * len(tokens) for tokens in ids]
        targets = [np.array(mask, dtype=np.int8) for mask in masks]
        if source == "prompt":
            for i, prompt in enumerate(_prompt_ids(tokenizer, rows, chat_template)):
                shared = split_at_prompt(prompt, ids[i])
                rewritten[i] = int(shared < len(prompt))
                if completion_only_loss:
                    targets[i][:shared] = 0
    columns: dict[str, list] = {"input_ids": [], "is_target": [], NUM_KEPT: [], NUM_WHOLE: [], REWRITTEN: rewritten}
    no_targets = image_token_ids(tokenizer)
    for i, (tokens, target) in enumerate(zip(ids, targets, strict=True)):
        start = max(0, len(tokens) - max_length) if keep_end and max_length is not None else 0
        end = None if max_length is None else start + max_length
        if no_targets:  # nobody writes images
            target[np.isin(tokens, no_targets)] = 0
        cut, target = tokens[start:end], target[start:end]
        check_images_are_whole(tokenizer, rows, i, tokens, cut, max_length)
        target[:1] = 0
        if not target.any():
            cut, target = [], target[:0]
        columns["input_ids"].append(cut)
        columns["is_target"].append(target.tolist())
        columns[NUM_KEPT].append(len(cut))
        columns[NUM_WHOLE].append(len(tokens))
    return columns


def completions_batch(
    batch: dict[str, list],
    indices: list[int],
    *,
    tokenizer: ProcessingClass,
    sides: tuple[str, ...],
    max_length: int | None,
    max_completion_length: int | None,
    keep_end: bool,
    kept_columns: tuple[str, ...],
    eos_token: str | None,
    chat_template: str | None,
    revision: int,
) -> dict[str, list]:
    """A prompt and its completions alone, in columns `prompt_ids` and, for each of `sides`, such as `chosen_ids`."""
    names = ["prompt_ids", *(f"{side}_ids" for side in sides)]
    rewritten, rows = [0] * len(indices), Rows(batch, indices)
    if set(names[1:]) <= set(batch):
        prompts = batch.get("prompt_ids") or [[]] * len(indices)
        rows_of_ids = [list(row) for row in zip(prompts, *(batch[name] for name in names[1:]), strict=True)]
    else:
        rows = _with_prompt(batch, indices, sides)
        prompts = _prompt_ids(tokenizer, rows, chat_template)
        options: dict[str, Any] = {"eos_token": eos_token, "chat_template": chat_template}
        wholes = [tokenize_any(tokenizer, rows, rows.joined("prompt", side), **options) for side in sides]
        rows_of_ids = []
        for i, (prompt, *ids) in enumerate(zip(prompts, *wholes, strict=True)):
            shared = split_at_prompt(prompt, *ids)
            rewritten[i] = int(shared < len(prompt))
            rows_of_ids.append([prompt[:shared], *(whole[shared:] for whole in ids)])
    columns: dict[str, list] = {name: [] for name in (*names, NUM_KEPT, NUM_WHOLE)}
    for i, row in enumerate(rows_of_ids):
        kept = _cut(row, max_length, max_completion_length, keep_end)
        check_images_are_whole(tokenizer, rows, i, row[0], kept[0] or row[0][:max_length], max_length)
        for name, ids in zip(names, kept, strict=True):
            columns[name].append(ids)
        columns[NUM_KEPT].append(sum(map(len, kept)))
        columns[NUM_WHOLE].append(sum(map(len, row)))
    return columns | {REWRITTEN: rewritten} | {name: batch[name] for name in kept_columns}


def reward_batch(
    batch: dict[str, list],
    indices: list[int],
    *,
    tokenizer: ProcessingClass,
    max_length: int | None,
    eos_token: str | None,
    chat_template: str | None,
    revision: int,
) -> dict[str, list]:
    columns: dict[str, list] = {name: [] for name in ("chosen_ids", "rejected_ids", NUM_KEPT, NUM_WHOLE)}
    if "chosen_ids" in batch:
        sides = [batch["chosen_ids"], batch["rejected_ids"]]
    else:
        rows = _with_prompt(batch, indices) if "prompt" in batch else Rows(batch, indices)
        sides = []
        for side in ("chosen", "rejected"):
            values = rows.joined("prompt", side) if "prompt" in rows.columns else rows.texts_or_messages(side)
            sides.append(tokenize_any(tokenizer, rows, values, eos_token=eos_token, chat_template=chat_template))
    for c, r in zip(*sides, strict=True):
        whole = len(c) + len(r)
        fits = c and r and (max_length is None or max(len(c), len(r)) <= max_length)
        columns["chosen_ids"].append(c if fits else [])
        columns["rejected_ids"].append(r if fits else [])
        columns[NUM_KEPT].append(whole if fits else 0)
        columns[NUM_WHOLE].append(whole)
    passed = {"margin": batch["margin"]} if "margin" in batch else {}
    return columns | {REWRITTEN: [0] * len(indices)} | passed


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


def _with_prompt(
    batch: Mapping[str, list], indices: Sequence[int], sides: Sequence[str] = ("chosen", "rejected")
) -> Rows:
    """The batch with an explicit prompt: where there is none, or one in another notation than its completions, what
    `chosen` and `rejected` begin with."""
    rows = Rows(batch, indices)
    if "chosen" not in sides:
        return rows
    columns: dict[str, list] = {name: [] for name in ("prompt", *sides)}
    for i in range(len(rows)):
        row = {side: batch[side][i] for side in sides}
        given = batch["prompt"][i] if "prompt" in batch else None
        if given is not None and isinstance(given, str) == isinstance(row["chosen"], str):
            row["prompt"] = given
        else:
            row |= extract_prompt(row)
            size = len(row["prompt"])
            for side in sides[2:]:
                if row[side][:size] != row["prompt"]:
                    problem = "does not begin with the prompt that 'chosen' and 'rejected' share; give a 'prompt'"
                    raise rows.error(i, side, problem)
                row[side] = row[side][size:]
        for name, values in columns.items():
            values.append(row[name])
    return Rows(dict(batch) | columns, indices)


def _prompt_ids(tokenizer: ProcessingClass, rows: Rows, chat_template: str | None) -> list[list[int]]:
    prompts = rows.texts_or_messages("prompt")
    return tokenize_any(tokenizer, rows, prompts, add_generation_prompt=True, chat_template=chat_template)


def _targets_given(rows: Rows, completion_only_loss: bool) -> list[np.ndarray]:
    """(tokens,) a row: 1 where its labels, or all of its masks, say that a token counts."""
    if "labels" in rows.columns:
        masks = {"labels": [np.array(labels) != -100 for labels in rows.columns["labels"]]}
    else:
        names = ["assistant_masks"] + ["completion_mask"] * completion_only_loss
        masks = {name: [np.array(m) != 0 for m in rows.columns[name]] for name in names if name in rows.columns}
    targets = []
    for i, ids in enumerate(rows.columns["input_ids"]):
        target = np.ones(len(ids), dtype=np.int8)
        for name, mask in masks.items():
            if len(mask[i]) != len(ids):
                raise rows.error(i, name, f"has {len(mask[i])} entries and 'input_ids' has {len(ids)}")
            target &= mask[i].astype(np.int8)
        targets.append(target)
    return targets


def _row(batch: Mapping[str, list], i: int) -> dict[str, Any]:
    return {name: column[i] for name, column in batch.items()}
