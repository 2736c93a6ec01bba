"""How long prepared rows are in the line's own tokens, and what a length limit would cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tuneline.data.rendering import Rows, tokenize_values
from tuneline.data.tokenize import tokenize_for_preference, tokenize_for_sft

NUM_BINS = 32
_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Lengths:
    """The lengths of the rows of a file, in tokens, and what becomes of the rows at `max_length`."""

    lengths: np.ndarray  # (rows,) of a pair: the prompt and its longer side
    max_length: int
    cut: int  # rows that would be truncated
    dropped: int  # rows that would be left out

    def as_dict(self) -> dict[str, Any]:
        """For a summary: plain numbers, with a histogram of equal bins from zero to the longest row."""
        edges = bin_edges([self.lengths])
        counts, _ = np.histogram(self.lengths, edges)
        return {
            "rows": len(self.lengths),
            "tokens": int(self.lengths.sum()),
            "min": int(self.lengths.min()),
            "median": float(np.median(self.lengths)),
            "mean": round(float(self.lengths.mean()), 3),
            "p95": round(float(np.percentile(self.lengths, 95)), 3),
            "p99": round(float(np.percentile(self.lengths, 99)), 3),
            "max": int(self.lengths.max()),
            "max_length": self.max_length,
            "cut_at_max_length": self.cut,
            "dropped_at_max_length": self.dropped,
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        }


def demonstration_lengths(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Lengths:
    """Lengths of rows to learn from; a row whose targets all lie beyond the limit would be dropped."""
    whole = tokenize_for_sft(rows, tokenizer, max_length=None).dataset.with_format("arrow")
    lengths = _list_lengths(whole, "input_ids")
    first_targets = np.array([row.index(1) for row in whole.with_format(None)["is_target"]], dtype=np.int64)
    dropped = int((first_targets >= max_length).sum())
    return Lengths(lengths, max_length, int((lengths > max_length).sum()) - dropped, dropped)


def preference_lengths(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Lengths:
    """Lengths of pairs, as DPO reads them: a pair whose prompt fills the limit would be dropped."""
    whole = tokenize_for_preference(rows, tokenizer, max_length=None).dataset.with_format("arrow")
    prompts = _list_lengths(whole, "prompt_ids")
    lengths = prompts + np.maximum(_list_lengths(whole, "chosen_ids"), _list_lengths(whole, "rejected_ids"))
    dropped = int((prompts >= max_length).sum())
    return Lengths(lengths, max_length, int((lengths > max_length).sum()) - dropped, dropped)


def prompt_lengths(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Lengths:
    """Lengths of prompts as they are asked; one that fills the limit leaves no room for an answer."""
    arrays = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        columns = rows[start : start + _ROWS_AT_ONCE]
        batch = Rows(columns, range(start, start + len(columns["prompt"])))
        ids = tokenize_values(tokenizer, batch, batch.texts_or_messages("prompt"), add_generation_prompt=True)
        arrays.append(np.array([len(tokens) for tokens in ids], dtype=np.int64))
    lengths = np.concatenate(arrays)
    return Lengths(lengths, max_length, 0, int((lengths >= max_length).sum()))


def bin_edges(lengths: Iterable[np.ndarray]) -> np.ndarray:
    """(bins + 1,) whole numbers from zero to past the longest, in equal steps."""
    longest = max(int(array.max()) for array in lengths)
    step = longest // NUM_BINS + 1
    return np.arange(0, longest + step + 1, step)


def _list_lengths(table: Dataset, column: str) -> np.ndarray:
    return np.concatenate(
        [chunk[column].combine_chunks().value_lengths().to_numpy() for chunk in table.iter(batch_size=_ROWS_AT_ONCE)]
    ).astype(np.int64)
