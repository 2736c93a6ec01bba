"""Images beside the text of prompt trees: what a processor made of them, a tree at a time.

Kept apart by tree, so that any micro-batch has the images of its own trees, whatever the first dimension of a model's
inputs counts: images (`image_grid_thw`), tiles, or patches (`pixel_values` of Qwen).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TreeImages:
    """The images of a row of trees, as the keywords that a model's forward reads."""

    by_tree: Sequence[Mapping[str, Tensor]]  # a tree: its images' tensors by name, none for a tree without images

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TreeImages:
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TreeImages:
        return self._mapped(lambda tensor: tensor.pin_memory())

    def first(self, num_trees: int) -> TreeImages:
        return TreeImages(self.by_tree[:num_trees])

    def of_sequences(self, tree_ids: Tensor) -> dict[str, Tensor]:
        """The images of sequences on rows of their own, each tree's once for each of its sequences.

        Args:
            tree_ids: (sequences,), the tree of each.
        """
        return end_to_end(self.by_tree[tree] for tree in tree_ids.tolist())

    def tensors(self) -> dict[str, Tensor]:
        """All by one name each, for a checkpoint: `number of the tree/name`."""
        return {f"{i}/{name}": tensor for i, own in enumerate(self.by_tree) for name, tensor in own.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], num_trees: int) -> TreeImages:
        """What `tensors` gave, of so many trees."""
        by_tree: list[dict[str, Tensor]] = [{} for _ in range(num_trees)]
        for key, tensor in tensors.items():
            number, _, name = key.partition("/")
            by_tree[int(number)][name] = tensor
        return cls(by_tree)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> TreeImages:
        return TreeImages([{name: change(tensor) for name, tensor in own.items()} for own in self.by_tree])


def end_to_end(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Inputs of several rows as those of one batch: behind one another in the first dimension. Where others differ,
    such as images a row or their sizes, the smaller ones are filled up with zeros, as processors do."""
    found: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, tensor in part.items():
            found.setdefault(name, []).append(tensor)
    return {name: torch.cat(_filled(tensors)) for name, tensors in found.items()}


def _filled(tensors: list[Tensor]) -> list[Tensor]:
    widest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    filled = []
    for tensor in tensors:
        if list(tensor.shape[1:]) != widest:
            whole = tensor.new_zeros(len(tensor), *widest)
            whole[tuple(slice(size) for size in tensor.shape)] = tensor
            tensor = whole
        filled.append(tensor)
    return filled
