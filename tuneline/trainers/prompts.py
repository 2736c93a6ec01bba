"""In which order an online trainer asks its prompts.

A generation batch is handed to the dataloader whole, once for each micro-batch that learns from it: whichever step a
run is resumed at, the loader stands where it stood.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset, Sampler


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
