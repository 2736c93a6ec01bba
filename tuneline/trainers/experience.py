"""What an online trainer learns from: rollouts with what was found out about them, as prompt trees.

A group's completions are the branches of one tree, so that their prompt is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tuneline.rollout.protocol import Rollout
from tuneline.tree_images import TreeImages
from tuneline.trees import Branch, PromptTrees, Tree, lay_out


@dataclass(frozen=True)
class Experience:
    """One micro-batch.

    `num_sequences`, `num_targets` and `num_tokens` count the rollouts that the micro-batch stands for, also those left
    out of its trees because nothing is learned from them: losses are means over all.
    """

    trees: PromptTrees
    advantages: Tensor  # (sequences,)
    weights: Tensor  # (sequences,) 1, or 0 for one that only stands in for an empty batch
    num_sequences: Tensor  # ()
    num_targets: Tensor  # ()
    num_tokens: Tensor  # ()
    by_target: dict[str, Tensor] = field(default_factory=dict)  # each (targets,), such as old_logprobs
    support: Tensor | None = None  # (targets, kept), see `token_logprobs`

    def __len__(self) -> int:
        """Trees of the micro-batch."""
        return len(self.trees)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Experience:
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor | PromptTrees)
        }
        by_target = {name: value.to(device, non_blocking=non_blocking) for name, value in self.by_target.items()}
        return replace(self, **moved, by_target=by_target)

    def state_dict(self) -> dict[str, Tensor]:
        """All of it as tensors by name, for a checkpoint."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        trees, by_target = own.pop("trees"), own.pop("by_target")
        tensors = {name: value for name, value in own.items() if value is not None}
        tensors |= {f"trees.{name}": value for name, value in trees.layout().items()}
        if trees.images is not None:
            tensors |= {f"images.{name}": value for name, value in trees.images.tensors().items()}
        return tensors | {f"by_target.{name}": value for name, value in by_target.items()}

    @classmethod
    def from_state_dict(cls, tensors: dict[str, Tensor]) -> Experience:
        parts: dict[str, dict[str, Tensor]] = {"": {}, "trees": {}, "images": {}, "by_target": {}}
        for name, value in tensors.items():
            part, _, own = name.rpartition(".")
            parts[part][own] = value
        trees = PromptTrees(**parts["trees"])  # type: ignore[arg-type]
        if parts["images"]:
            trees = replace(trees, images=TreeImages.from_tensors(parts["images"], len(trees)))
        return cls(trees=trees, by_target=parts["by_target"], **parts[""])


@dataclass
class ScoredRollout:
    """A rollout with its advantage and what models said of its targets.

    Attributes:
        by_target: each (targets,), float32.
        learns: False where nothing is to be learned from it; it is counted and left out.
        counts_targets: False where its tokens do not count in means over tokens either.
    """

    rollout: Rollout
    advantage: float = 0.0
    by_target: dict[str, Tensor] = field(default_factory=dict)
    learns: bool = True
    counts_targets: bool = True

    @property
    def num_targets(self) -> int:
        mask = self.rollout.is_target
        return len(self.rollout.completion_ids) if mask is None else sum(mask)


def lay_out_rollouts(rollouts: Sequence[Rollout]) -> PromptTrees:
    """Rollouts of one prompt, with one set of images, that follow one another share a tree."""
    trees: list[Tree] = []
    images: list[Mapping[str, Tensor]] = []
    for rollout in rollouts:
        branch, own = Branch(rollout.completion_ids, rollout.is_target), rollout.images or {}
        is_same = trees and (images[-1] is own or not (images[-1] or own))
        if is_same and list(trees[-1].prompt_ids) == list(rollout.prompt_ids):
            trees[-1] = Tree(trees[-1].prompt_ids, [*trees[-1].branches, branch])
        else:
            trees.append(Tree(rollout.prompt_ids, [branch]))
            images.append(own)
    row = lay_out(trees)
    return replace(row, images=TreeImages(images)) if any(images) else row


def support_of(rollouts: Sequence[Rollout]) -> Tensor | None:
    """(targets, kept): what could be drawn at each target, see `token_logprobs`; None where nothing was cut.

    A rollout that came without it among others that have it counts as uncut.
    """
    if all(rollout.support is None for rollout in rollouts):
        return None
    kept: list[list[int]] = []
    for rollout in rollouts:
        mask = rollout.is_target or [1] * len(rollout.completion_ids)
        support = rollout.support or [[-1]] * len(rollout.completion_ids)
        kept += [ids for ids, is_target in zip(support, mask, strict=True) if is_target]
    width = max(map(len, kept), default=1)
    return torch.tensor([ids + ids[:1] * (width - len(ids)) for ids in kept], dtype=torch.long).reshape(-1, width)


def sampler_logprobs(rollout: Rollout, cuts_support: bool = False) -> Tensor:
    """(targets,): as the sampler gave them; NaN where it gave none, or gave one over tokens that are not known."""
    logprobs = torch.tensor(rollout.logprobs, dtype=torch.float32)
    if cuts_support and rollout.support is None:
        logprobs.fill_(torch.nan)
    return logprobs if rollout.is_target is None else logprobs[torch.tensor(rollout.is_target, dtype=torch.bool)]


def make_experience(scored: Sequence[ScoredRollout]) -> Experience:
    """One micro-batch from at least one rollout; if none of them teaches anything, the shortest stands in."""
    kept = [one for one in scored if one.learns and one.num_targets]
    weight = 1.0
    if not kept:
        kept = [min(scored, key=lambda one: len(one.rollout.prompt_ids) + len(one.rollout.completion_ids))]
        weight = 0.0
    lengths = [len(one.rollout.prompt_ids) + len(one.rollout.completion_ids) for one in scored]
    rollouts = [one.rollout for one in kept]
    return Experience(
        trees=lay_out_rollouts(rollouts),
        advantages=torch.tensor([one.advantage for one in kept], dtype=torch.float32),
        weights=torch.full((len(kept),), weight),
        num_sequences=torch.tensor(len(scored)),
        num_targets=torch.tensor(sum(one.num_targets for one in scored if one.counts_targets)),
        num_tokens=torch.tensor(sum(lengths)),
        by_target={name: torch.cat([one.by_target[name] for one in kept]) for name in kept[0].by_target},
        support=support_of(rollouts),
    )


def save_experiences(experiences: Sequence[Experience], path: Path) -> None:
    """Write micro-batches that wait to be learned from, as safetensors."""
    save_file(
        {  # copies, since an experience that is learned from twice waits twice, and a file holds no tensor twice
            f"{i}/{name}": tensor.clone(memory_format=torch.contiguous_format)
            for i, one in enumerate(experiences)
            for name, tensor in one.state_dict().items()
        },
        path,
    )


def load_experiences(path: Path) -> list[Experience]:
    found: dict[int, dict[str, Any]] = {}
    for name, tensor in load_file(path).items():
        number, _, own = name.partition("/")
        found.setdefault(int(number), {})[own] = tensor
    return [Experience.from_state_dict(found[i]) for i in sorted(found)]
