"""Solutions in steps, each step labelled right or wrong, as token ids: what process reward models are trained on."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.batches import NUM_KEPT, NUM_WHOLE, REWRITTEN
from tuneline.data.rendering import Rows, tokenize_texts
from tuneline.data.tokenize import AnyDataset, Tokenized, read_plainly, tokenize_rows, unknown_format
from tuneline.errors import DataError


def tokenize_for_steps(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    step_separator: str = "\n",
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    max_completion_length: int | None = None,
    last_step_only: bool = False,
    num_proc: int | None = None,
) -> Tokenized:
    """Columns `input_ids`, `step_ends` (the position of each labelled step's last token) and `step_labels` (0 or 1).

    Takes `prompt`, `completions` (a list of steps) and `labels` (a bool for each), or `input_ids` with `labels` that
    are -100 but where a step ends. Prompt, steps and separators are tokenised apart and joined, with the tokenizer's
    BOS token in front if it has one, as TRL does it. A row of which no labelled step is left is dropped.

    Args:
        step_separator: ends every step; its last token bears the step's label.
        max_prompt_length: the prompt loses its beginning.
        max_length, max_completion_length: the solution loses its end.
        last_step_only: leaves out the labels of all steps but the last.

    Raises:
        DataError: no such format, a row that is none, or no label in any row.
    """
    dataset, first = read_plainly(dataset, tokenizer)
    if not ({"input_ids", "labels"} <= set(first) or {"prompt", "completions", "labels"} <= set(first)):
        raise unknown_format(first, "'prompt', 'completions' and 'labels'")
    separator = tokenize_texts(tokenizer, [step_separator], add_special_tokens=False)[0]
    if not separator:
        raise DataError(f"step_separator={step_separator!r} has no token, so no step would have a place for its label.")
    arguments = {
        "tokenizer": tokenizer,
        "separator": separator,
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "max_completion_length": max_completion_length,
        "last_step_only": last_step_only,
    }
    return tokenize_rows(dataset, steps_batch, arguments, num_proc)


def steps_batch(
    batch: dict[str, list],
    indices: list[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    separator: list[int],
    max_length: int | None,
    max_prompt_length: int | None,
    max_completion_length: int | None,
    last_step_only: bool,
    revision: int,
) -> dict[str, list]:
    if "input_ids" in batch:
        rows_of_ids = []
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            labelled = [(end, label) for end, label in enumerate(labels) if label != -100]
            rows_of_ids.append((ids, labelled[-1:] if last_step_only else labelled))
        whole = [len(ids) for ids in batch["input_ids"]]
    else:
        prompts, solutions = _tokenized(Rows(batch, indices), tokenizer)
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        rows_of_ids, whole = [], []
        for prompt, steps, labels in zip(prompts, solutions, batch["labels"], strict=True):
            prompt_ids = bos + (prompt if max_prompt_length is None else prompt[-max_prompt_length:])
            steps = [step + separator for step in steps]
            solution = [token for step in steps for token in step][:max_completion_length]
            ends = [len(prompt_ids) + end - 1 for end in accumulate(map(len, steps))]
            shown = len(prompt_ids) + len(solution)
            labelled = [(end, int(label)) for end, label in zip(ends, labels, strict=True) if end < shown]
            if last_step_only:
                labelled = [(end, label) for end, label in labelled if end == ends[-1]]
            rows_of_ids.append((prompt_ids + solution, labelled))
            whole.append(len(bos) + len(prompt) + sum(map(len, steps)))
    columns: dict[str, list] = {"input_ids": [], "step_ends": [], "step_labels": [], NUM_KEPT: []}
    for ids, labelled in rows_of_ids:
        kept = ids[:max_length]
        labelled = [(end, label) for end, label in labelled if end < len(kept)]
        columns["input_ids"].append(kept if labelled else [])
        columns["step_ends"].append([end for end, _ in labelled])
        columns["step_labels"].append([label for _, label in labelled])
        columns[NUM_KEPT].append(len(kept) if labelled else 0)
    return columns | {NUM_WHOLE: whole, REWRITTEN: [0] * len(whole)}


def _tokenized(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The ids of each prompt, and of each of its steps."""
    columns = rows.columns
    for i, (prompt, steps, labels) in enumerate(
        zip(columns["prompt"], columns["completions"], columns["labels"], strict=True)
    ):
        if not isinstance(prompt, str) or not all(isinstance(step, str) for step in steps):
            raise rows.error(i, "completions", "is not a list of texts that follow a text, the prompt")
        if len(steps) != len(labels):
            raise rows.error(i, "labels", f"has {len(labels)} entries and 'completions' has {len(steps)}")
    options: dict[str, Any] = {"add_special_tokens": False}
    prompts = tokenize_texts(tokenizer, columns["prompt"], **options)
    flat = iter(tokenize_texts(tokenizer, [step for steps in columns["completions"] for step in steps], **options))
    return prompts, [[next(flat) for _ in steps] for steps in columns["completions"]]
