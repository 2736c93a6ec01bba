"""Datasets in TRL's formats as token ids: what each trainer reads, with an account of what was cut and dropped.

One batched pass a dataset, whose result is found again when the same rows are tokenised alike (see `token_cache`).
Targets are told by position and never by token id, so a padding token that is also the EOS token stays a target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from datasets import Dataset, IterableDataset

from tuneline.data.batches import NUM_KEPT, NUM_WHOLE, REWRITTEN, completions_batch, reward_batch, sft_batch
from tuneline.data.formats import column_names
from tuneline.data.images import IMAGE_COLUMNS, check_images_are_read, has_images, tokenizer_of, with_image_column
from tuneline.data.multimodal_rendering import ProcessingClass
from tuneline.data.rendering import require_eos
from tuneline.data.token_cache import map_cached
from tuneline.errors import ConfigError, DataError
from tuneline.logging import get_logger

logger = get_logger(__name__)

AnyDataset: TypeAlias = Dataset | IterableDataset

_REVISION = 1  # enters the cache key of `datasets`; raise it whenever the tokens of a row change


@dataclass(frozen=True)
class TokenizationReport:
    """What became of a dataset's rows and tokens; None where a stream cannot tell in advance.

    A prompt that two completions share counts once.
    """

    num_rows: int | None
    num_kept: int | None
    num_truncated: int | None  # rows that were kept, cut at max_length
    num_dropped: int | None  # rows with nothing to learn from, or too long
    num_tokens: int | None  # tokens of what was kept
    num_tokens_cut: int | None  # tokens cut off, or in rows that were dropped

    def describe(self) -> str:
        """One line for a log."""
        if self.num_rows is None:
            return "a stream: rows and tokens are counted as they come"
        return (
            f"{self.num_rows:,} rows: {self.num_kept:,} kept with {self.num_tokens:,} tokens, of which "
            f"{self.num_truncated:,} truncated; {self.num_dropped:,} dropped; {self.num_tokens_cut:,} tokens cut"
        )


class Tokenized(NamedTuple):
    """A dataset that a trainer can read, and what was lost on the way."""

    dataset: Any  # Dataset or IterableDataset, as it came in
    report: TokenizationReport


def tokenize_for_sft(
    dataset: AnyDataset,
    tokenizer: ProcessingClass,
    *,
    max_length: int | None,
    dataset_text_field: str = "text",
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool = False,
    formatting_func: Callable[[dict[str, Any]], str] | None = None,
    eos_token: str | None = None,
    truncation_mode: str = "keep_start",
    chat_template: str | None = None,
    num_proc: int | None = None,
) -> Tokenized:
    """Columns `input_ids` and `is_target` (1 for each token the loss counts; never the first, which nothing predicts).

    Takes text, `messages`, ShareGPT `conversations`, `prompt` with `completion`, or `input_ids` with any of `labels`,
    `completion_mask` and `assistant_masks`. Rows longer than `max_length` are cut; rows without a target go.

    Args:
        max_length: in tokens; None cuts nothing.
        truncation_mode: `keep_start`, or `keep_end`, which cuts the beginning.
        completion_only_loss: None means wherever there are completions.
        formatting_func: makes the text of a row; its result goes before the other columns.

    Raises:
        DataError: no known format, a row that is none, or no target in any row.
        ModelError: no chat template, no generation marks for `assistant_only_loss`, or no EOS token.
    """
    dataset, first = read_plainly(dataset, tokenizer)
    if formatting_func is not None:
        source = "formatted"
    elif "input_ids" in first:
        source = "input_ids"
    elif "prompt" in first and "completion" in first:
        source = "prompt"
    else:
        candidates = ("messages", "conversations", dataset_text_field)
        found = [name for name in candidates if first.get(name) is not None]
        if not found:
            raise unknown_format(first, f"{dataset_text_field!r}, 'messages', 'prompt' with 'completion', 'input_ids'")
        source = found[0]
    if completion_only_loss and source not in ("prompt", "input_ids"):
        raise DataError(
            f"completion_only_loss=True needs 'prompt' and 'completion'; the dataset has {', '.join(first)}. "
            "Leave it unset, or use assistant_only_loss for messages."
        )
    if assistant_only_loss and source == "input_ids" and not {"assistant_masks", "labels"} & set(first):
        raise DataError("assistant_only_loss=True needs 'assistant_masks' beside 'input_ids'; the dataset has none.")
    standard = source == "formatted" or isinstance(first.get("completion" if source == "prompt" else source), str)
    arguments = {
        "tokenizer": tokenizer,
        "source": source,
        "max_length": max_length,
        "keep_end": _keeps_end(truncation_mode),
        "completion_only_loss": completion_only_loss is not False,
        "assistant_only_loss": assistant_only_loss,
        "formatting_func": formatting_func,
        "eos_token": _end_of_text(tokenizer, eos_token, first) if standard else None,
        "chat_template": chat_template,
    }
    return tokenize_rows(dataset, sft_batch, arguments, num_proc)


def tokenize_for_preference(
    dataset: AnyDataset,
    tokenizer: ProcessingClass,
    *,
    max_length: int | None,
    eos_token: str | None = None,
    truncation_mode: str = "keep_start",
    chat_template: str | None = None,
    num_proc: int | None = None,
) -> Tokenized:
    """Columns `prompt_ids`, `chosen_ids` and `rejected_ids`: a prompt, and its completions alone.

    See `tokenize_completions`. Columns `margin`, `ref_chosen_logps` and `ref_rejected_logps` are kept.

    Raises: as `tokenize_for_sft`.
    """
    return tokenize_completions(
        dataset,
        tokenizer,
        ["chosen", "rejected"],
        max_length=max_length,
        truncation_mode=truncation_mode,
        kept_columns=["margin", "ref_chosen_logps", "ref_rejected_logps"],
        eos_token=eos_token,
        chat_template=chat_template,
        num_proc=num_proc,
    )


def tokenize_completions(
    dataset: AnyDataset,
    tokenizer: ProcessingClass,
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

    Completions lose what lies beyond `max_length`, counted from the start of the prompt; rows whose prompt leaves no
    room are dropped. With `keep_end` the prompt loses its beginning instead, as the longest side needs it (TRL cuts
    each side by itself, which leaves them with different prompts).

    Args:
        sides: the columns that hold completions. Without a `prompt` column the prompt is what `chosen` and `rejected`
            begin with, and every other side has to begin with it too. Token ids are taken as they are.
        max_length: of prompt and completion together, in tokens; None cuts nothing.
        max_completion_length: of a completion, which loses its end; None cuts nothing.
        truncation_mode: `keep_start` or `keep_end`.
        required_columns: further columns to keep, which the data set must have.
        kept_columns: further columns to keep, where the data set has them.

    Raises: as `tokenize_for_sft`.
    """
    dataset, first = _named_alike(*read_plainly(dataset, tokenizer), sides)
    ready = {f"{side}_ids" for side in sides} <= set(first)
    explicit = {"prompt", *sides} if "chosen" not in sides else set(sides)
    if not (ready or explicit <= set(first)) or not set(required_columns) <= set(first):
        names = " and ".join(repr(name) for name in sorted(explicit | set(required_columns)))
        raise unknown_format(first, names + ("" if "prompt" in explicit else ", with or without 'prompt'"))
    arguments = {
        "tokenizer": tokenizer,
        "sides": tuple(sides),
        "max_length": max_length,
        "max_completion_length": max_completion_length,
        "keep_end": _keeps_end(truncation_mode),
        "kept_columns": (*required_columns, *(name for name in kept_columns if name in first)),
        "eos_token": _end_of_text(tokenizer, eos_token, first)
        if not ready and isinstance(first[sides[0]], str)
        else None,
        "chat_template": chat_template,
    }
    return tokenize_rows(dataset, completions_batch, arguments, num_proc)


def tokenize_for_reward(
    dataset: AnyDataset,
    tokenizer: ProcessingClass,
    *,
    max_length: int | None,
    eos_token: str | None = None,
    chat_template: str | None = None,
    num_proc: int | None = None,
) -> Tokenized:
    """Columns `chosen_ids` and `rejected_ids` (whole sequences, prompts included); a column `margin` is kept.

    A pair with a side longer than `max_length` is dropped: the score is read at the end of a sequence.

    Raises: as `tokenize_for_sft`.
    """
    dataset, first = _named_alike(*read_plainly(dataset, tokenizer), ["chosen", "rejected"])
    ready = {"chosen_ids", "rejected_ids"} <= set(first)
    if not ready and not {"chosen", "rejected"} <= set(first):
        raise unknown_format(first, "'chosen' and 'rejected', with or without 'prompt'")
    arguments = {
        "tokenizer": tokenizer,
        "max_length": max_length,
        "eos_token": _end_of_text(tokenizer, eos_token, first)
        if not ready and isinstance(first["chosen"], str)
        else None,
        "chat_template": chat_template,
    }
    return tokenize_rows(dataset, reward_batch, arguments, num_proc)


def _named_alike(dataset: Any, first: dict[str, Any], sides: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Token ids in columns such as `chosen_ids`, also where an older TRL named them `chosen_input_ids`."""
    older = {f"{side}_input_ids": f"{side}_ids" for side in sides if f"{side}_ids" not in first}
    older = {old: new for old, new in older.items() if old in first}
    if not older:
        return dataset, first
    dataset = dataset.rename_columns(older)
    return dataset, next(iter(dataset))


def _end_of_text(tokenizer: ProcessingClass, eos_token: str | None, first: Mapping[str, Any]) -> str | None:
    """What plain texts end with; None beside images, where they are taken as they stand."""
    return None if has_images(first) else require_eos(tokenizer_of(tokenizer), eos_token)


def read_plainly(dataset: AnyDataset, tokenizer: ProcessingClass) -> tuple[Any, dict[str, Any]]:
    """The dataset read as plain Python values, with its images in a column, and its first row."""
    if isinstance(dataset, Dataset):
        if dataset.format["type"] == "custom":
            raise DataError(
                "The dataset has a transform (`with_transform`), which tokenising would bake in; "
                "apply it with `map` first, or pass token ids."
            )
        dataset = dataset.with_format(None)
    first = next(iter(dataset), None)
    if first is None:
        raise DataError("The dataset has no rows.")
    if check_images_are_read(tokenizer, dataset, "The dataset"):
        dataset = with_image_column(dataset, first)
        first = next(iter(dataset))
    return dataset, first


def unknown_format(first: Mapping[str, Any], expected: str) -> DataError:
    return DataError(f"The dataset has the columns {', '.join(map(repr, first))}; expected {expected}.")


def tokenize_rows(
    dataset: AnyDataset, function: Callable, arguments: dict[str, Any], num_proc: int | None
) -> Tokenized:
    """Tokenise in one pass, drop the rows of which nothing was kept, and count."""
    arguments = {**arguments, "revision": _REVISION}
    read = [name for name in column_names(dataset) if name not in IMAGE_COLUMNS]  # pixels are made of these later
    options = {"batched": True, "with_indices": True, "remove_columns": read}
    counters = [NUM_KEPT, NUM_WHOLE, REWRITTEN]
    if isinstance(dataset, IterableDataset):
        stream = (
            dataset.map(function, fn_kwargs=arguments, **options)
            .filter(_is_kept, input_columns=[NUM_KEPT])
            .remove_columns(counters)
        )
        if next(iter(stream), None) is None:
            raise _nothing_left()
        return Tokenized(stream, TokenizationReport(None, None, None, None, None, None))

    mapped = map_cached(dataset, function, arguments, num_proc=num_proc, desc="Tokenizing", **options)
    table = mapped.select_columns(counters).with_format("numpy")[:]
    kept, whole = table[NUM_KEPT], table[NUM_WHOLE]
    report = TokenizationReport(
        num_rows=len(kept),
        num_kept=int((kept > 0).sum()),
        num_truncated=int(((kept > 0) & (kept < whole)).sum()),
        num_dropped=int((kept == 0).sum()),
        num_tokens=int(kept.sum()),
        num_tokens_cut=int((whole - kept).sum()),
    )
    if not report.num_kept:
        raise _nothing_left(report)
    if rewritten := int(table[REWRITTEN].sum()):
        logger.warning(
            "%d of %d prompts are tokenised differently when their completion follows; "
            "there the completion starts where the two depart.",
            rewritten,
            len(kept),
        )
    mapped = mapped.remove_columns(counters)
    if report.num_dropped:
        mapped = mapped.select(np.flatnonzero(kept))
    return Tokenized(mapped, report)


def _keeps_end(truncation_mode: str) -> bool:
    if truncation_mode not in ("keep_start", "keep_end"):
        raise ConfigError(f"truncation_mode={truncation_mode!r} is unknown; use 'keep_start' or 'keep_end'.")
    return truncation_mode == "keep_end"


def _is_kept(num_tokens: int) -> bool:
    return num_tokens > 0


def _nothing_left(report: TokenizationReport | None = None) -> DataError:
    seen = f" ({report.describe()})" if report else ""
    return DataError(
        f"No row has a token to learn from{seen}. Either max_length leaves nothing of the completions, "
        "or the masks, labels or generation marks select no token."
    )
