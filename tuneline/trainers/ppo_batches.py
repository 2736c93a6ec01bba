"""How a generation is cut into mini-batches, another way in each pass over it."""

from __future__ import annotations

import torch

from tuneline.rollout.protocol import rollout_seed


def shuffled_mini_batches(
    num_rollouts: int, num_mini_batches: int, *, group_size: int, first: int, key: tuple[int | str, ...]
) -> list[list[int]]:
    """Which of a process's rollouts each mini-batch learns from, in one pass.

    Of every `num_mini_batches` neighbours each goes to another mini-batch, in an order drawn from `key` and their place
    in the generation. So mini-batches are as large as one another, and the same however many processes share them.

    Args:
        num_rollouts: of this process.
        group_size: completions of one prompt, behind one another; they stay together, and share their prompt, where
            there are enough groups.
        first: the place of the first rollout among those of all processes.
        key: names all that is random.

    Returns:
        Numbers of rollouts, in their order, for each mini-batch.
    """
    block = group_size * num_mini_batches
    unit = group_size if num_rollouts % block == 0 and first % block == 0 else 1
    block = unit * num_mini_batches
    parts: list[list[int]] = [[] for _ in range(num_mini_batches)]
    for start in range(0, num_rollouts, block):
        generator = torch.Generator().manual_seed(rollout_seed(*key, (first + start) // block))
        places = torch.randperm(num_mini_batches, generator=generator).tolist()
        for place, begin in zip(places, range(start, min(start + block, num_rollouts), unit), strict=False):
            parts[place] += range(begin, min(begin + unit, num_rollouts))
    return parts
