"""What a model's last layer need not compute: outputs at positions that the head never reads.

Only the keys and values of the last layer are wanted at every token. Its feed-forward block, its queries and its output
projection act on each token alone, so they are computed where the head reads, and zeros stand elsewhere. For a reward
model that is one position a sequence; for eight layers it saves about a tenth of the products.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

# A gather and a scatter cost about what a tenth of the block does.
_WORTH_IT_BELOW = 0.75

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_BY_TOKEN = ("mlp", "self_attn.q_proj", "self_attn.o_proj")


def narrow_last_layer(model: PreTrainedModel) -> None:
    """Let the last layer of a decoder skip what `Segments.read` leaves out. A mixture of experts is left alone: its
    load balancing counts every token."""
    config = model.config.get_text_config()
    if any(getattr(config, name, None) for name in _EXPERT_COUNTS):
        return
    stacks = [child for child in model.base_model.children() if isinstance(child, nn.ModuleList)]
    if len(stacks) != 1 or len(stacks[0]) != config.num_hidden_layers:
        return
    layer = stacks[0][-1]
    modules = dict(layer.named_modules())
    narrowed = [modules[name] for name in _BY_TOKEN if name in modules]
    if not narrowed:
        return
    for module in narrowed:
        module.positions_read = None
        module.register_forward_pre_hook(_gather)
        module.register_forward_hook(_scatter)
    layer.register_forward_pre_hook(_tell, with_kwargs=True)


# Hooks hold no state of their own, so that a copied model has a copy of it.


def _tell(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    segments: Any = kwargs.get("segments")
    read = None if segments is None else segments.read
    for name, module in layer.named_modules():
        if name in _BY_TOKEN:
            is_worth_it = read is not None and len(read) <= _WORTH_IT_BELOW * segments.num_tokens
            module.positions_read = read if is_worth_it else None


def _gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    read: Any = module.positions_read
    if read is None:
        return None
    module.num_positions = args[0].shape[1]  # type: ignore[assignment]
    return (args[0].index_select(1, read), *args[1:])


def _scatter(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    read: Any = module.positions_read
    if read is None:
        return None
    num_positions: Any = module.num_positions
    return output.new_zeros(output.shape[0], num_positions, output.shape[2]).index_copy(1, read, output)
