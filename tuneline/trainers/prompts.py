"""In which order an online trainer asks its prompts.

A generation batch is handed to the dataloader whole, once for each micro-batch that learns from it: whichever step a
run is resumed at, the loader stands where it stood.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from datasets import IterableDataset as DatasetsIterable
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import PreTrainedTokenizerBase, Trainer

from tuneline.errors import ConfigError, DataError
from tuneline.trainers.online_config import OnlineConfig

_EMPTY_PROMPT = [{"role": "user", "content": ""}]


class RepeatSampler(Sampler[int]):
    """Indices in random or given order, each group of them repeated; the last ones that fill no batch are left out.

    Args:
        num_rows: of the dataset.
        mini_repeat_count: times that an index follows itself.
        batch_size: different indices a batch.
        repeat_count: times that a batch is repeated as a whole.
        shuffle: draw the order anew in each epoch, from `seed` and the epoch.
    """

    def __init__(
        self,
        num_rows: int,
        mini_repeat_count: int,
        batch_size: int = 1,
        repeat_count: int = 1,
        shuffle: bool = True,
        seed: int = 0,
    ):
        self.num_rows, self.batch_size = num_rows, batch_size
        self.mini_repeat_count, self.repeat_count = mini_repeat_count, repeat_count
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows // self.batch_size * self.batch_size * self.mini_repeat_count * self.repeat_count

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.num_rows))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.num_rows, generator=generator).tolist()
        for start in range(0, self.num_rows // self.batch_size * self.batch_size, self.batch_size):
            batch = order[start : start + self.batch_size]
            for _ in range(self.repeat_count):
                for index in batch:
                    yield from [index] * self.mini_repeat_count


class RepeatedStream(IterableDataset):
    """The rows of a stream in the order of a `RepeatSampler` that does not shuffle."""

    def __init__(self, rows: Any, mini_repeat_count: int, batch_size: int, repeat_count: int):
        self.rows, self.batch_size = rows, batch_size
        self.mini_repeat_count, self.repeat_count = mini_repeat_count, repeat_count

    def set_epoch(self, epoch: int) -> None:
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = iter(self.rows)
        while len(batch := list(islice(rows, self.batch_size))) == self.batch_size:
            for _ in range(self.repeat_count):
                for row in batch:
                    for _ in range(self.mini_repeat_count):
                        yield dict(row)


def empty_prompts(args: OnlineConfig) -> Dataset:
    """As many empty prompts as a run of `max_steps` asks; the environments' resets fill them."""
    if args.max_steps <= 0:
        raise ConfigError("without a train_dataset the length of the run is unknown; set max_steps.")
    total = args.generation_batch_size
    assert total is not None
    return Dataset.from_list([{"prompt": _EMPTY_PROMPT}] * (total // args.num_generations))


def with_prompts(rows: Any) -> Any:
    """Rows without prompts given empty ones, which the environments' resets fill."""
    if isinstance(rows, dict):
        return {name: with_prompts(part) for name, part in rows.items()}
    if not isinstance(rows, Dataset) or "prompt" in rows.column_names:
        return rows
    return rows.add_column("prompt", [_EMPTY_PROMPT] * len(rows))


def with_decoded_prompts(rows: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Rows that come as tokens (`input_ids`) and without a `prompt`, given its text.

    The tokens are what the policy is asked, as `prompt_input_ids`, without those that an `attention_mask` leaves out;
    the text, without the token that opens a sequence, is what reward functions read.
    """
    if isinstance(rows, dict):
        return {name: with_decoded_prompts(part, tokenizer) for name, part in rows.items()}
    names = rows.column_names if isinstance(rows, Dataset | DatasetsIterable) else None
    if names is None or "prompt" in names or "input_ids" not in names:
        return rows

    def decode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        prompts = batch["input_ids"]
        if "attention_mask" in batch:
            pairs = zip(prompts, batch["attention_mask"], strict=True)
            prompts = [[i for i, is_kept in zip(ids, mask, strict=True) if is_kept] for ids, mask in pairs]
        opened = (ids[1:] if ids[:1] == [tokenizer.bos_token_id] else ids for ids in prompts)
        return {"prompt": [tokenizer.decode(ids) for ids in opened], "prompt_input_ids": prompts}

    replaced = [name for name in ("input_ids", "attention_mask") if name in names]
    return rows.map(decode, batched=True, remove_columns=replaced)


def prompt_loader(
    trainer: Trainer, rows: Any, batch_size: int, group_size: int, num_prompts: int, repeats: int, shuffle: bool
) -> DataLoader:
    """Rows as the loop of `trainer` takes them: each of `num_prompts` rows `group_size` times, all of that `repeats`
    times.

    Raises:
        DataError: too few rows.
    """
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "collate_fn": list,
        "num_workers": trainer.args.dataloader_num_workers,
        # The loader draws a seed for its workers; of its own, so that an evaluation leaves training's draws alone.
        "generator": torch.Generator().manual_seed(trainer.args.seed),
    }
    if isinstance(rows, DatasetsIterable):
        options["num_workers"] = min(1, options["num_workers"])  # several would mix up the batches
        stream = RepeatedStream(rows, group_size, num_prompts, repeats)
        return trainer.accelerator.prepare(DataLoader(stream, **options))
    sampler = RepeatSampler(len(rows), group_size, num_prompts, repeats, shuffle, trainer.args.seed)
    if not len(sampler):
        raise DataError(f"the dataset has {len(rows)} rows, and a generation asks {num_prompts}; lower the batch.")
    return trainer.accelerator.prepare(DataLoader(rows, sampler=sampler, **options))
