"""Last hidden states of a model at chosen tokens of trees, by whichever layout it can read: what value functions and
rewards on a shared backbone are linear maps of. The product with the vocabulary is not computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tuneline.attention import Segments, reading_trees
from tuneline.heads import ScoreHead, TargetHead
from tuneline.models.adapters import active_adapter
from tuneline.models.layouts import base_model, output_head, score_head
from tuneline.models.padded import padded_inputs
from tuneline.products import fill_up
from tuneline.trees import PromptTrees


@dataclass(frozen=True)
class Reading:
    """A pass through a model's layers, and what of it is read."""

    inputs: dict[str, Any]  # of the model without its head
    at: Tensor  # (read,) of the hidden states (rows, positions), end to end


def reads_trees(model: nn.Module) -> bool:
    """Whether a model went through `prepare_for_trees` and can read them."""
    return isinstance(output_head(model), TargetHead) or isinstance(score_head(model), ScoreHead)


def reading(
    model: nn.Module,
    trees: PromptTrees,
    positions: Tensor,
    sequence_ids: Tensor,
    *,
    adapter: str | None = None,
    segments: Segments | None = None,
) -> Reading:
    """Prepare to read hidden states at `positions` (read,) of a row of trees, each in the sequence `sequence_ids`
    (read,).

    Args:
        adapter: the one at work, for layers that run again in the backward pass; None for those that are active.
        segments: of a pass of the same row that reads the same positions, whose plan is shared.
    """
    if not reads_trees(model):
        rows, inputs = padded_inputs(model, trees)
        return Reading(inputs, sequence_ids * rows.input_ids.shape[1] + trees.position_ids[0, positions])
    trees = fill_up(trees)
    if segments is None:
        segments = Segments(trees.segments, trees.num_tokens, read=positions.unique())
    inputs = {
        "input_ids": trees.input_ids,
        "position_ids": trees.position_ids,
        "segments": segments.again(adapter),
        "use_cache": False,
    }
    return Reading(inputs, positions)


def hidden_states(model: nn.Module, what: Reading, adapter: str | None = None) -> Tensor:
    """(read, hidden), with `adapter` at work, or those that are active."""
    chosen = nullcontext() if adapter is None else active_adapter(model, adapter)
    without_mask = reading_trees() if "segments" in what.inputs else nullcontext()
    with chosen, without_mask:
        return rows_of(base_model(model).base_model(**what.inputs).last_hidden_state, what.at)


def rows_of(hidden: Tensor, at: Tensor) -> Tensor:
    """(read, hidden) of hidden states (rows, positions, hidden), by index_select, whose gradient adds up rows that are
    read several times in a fixed order."""
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, at)


@contextmanager
def input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module reads while this lasts, call by call."""
    heard: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    try:
        yield heard
    finally:
        hook.remove()
