"""Which layout a model can read: prompt trees, or padded rows. Decided here and nowhere else, from what the model
is."""

from __future__ import annotations

import inspect
from typing import Any

from accelerate.utils import extract_model_from_parallel
from peft import PeftModel, PeftType
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from tuneline.attention import TREE_ATTENTION
from tuneline.errors import ModelError
from tuneline.heads import LabelHead, ScoreHead, TargetHead
from tuneline.logging import get_logger
from tuneline.models.last_layer import narrow_last_layer
from tuneline.products import FastLinear, use_fast_products

logger = get_logger(__name__)

_READABLE_LAYERS = {"full_attention", "sliding_attention"}


def prepare_for_trees(model: nn.Module) -> bool:
    """Let a causal language model or a one-label sequence classifier read prompt trees, in place.

    Its attention and its head are exchanged for ones that share its parameters; generation and padded calls stay as
    they were.

    Returns:
        Whether it can. If not it is left alone, the reason is logged, and it takes padded rows.

    Raises:
        ModelError: adapters on the output head, which reads its weight directly.
    """
    base = base_model(model)
    if learns_a_prompt(model):
        logger.info("%s takes padded rows, not prompt trees: its adapter begins every sequence", type(base).__name__)
        return False
    head_name = _head_name(base)
    head: Any = getattr(base, head_name, None)
    kept_by_adapter = isinstance(head, ModulesToSaveWrapper)
    if isinstance(head.original_module if kept_by_adapter else head, TargetHead | ScoreHead):
        return True
    reason = _why_not(base, head_name)
    if reason:
        logger.info("%s takes padded rows, not prompt trees: %s", type(base).__name__, reason)
        return False
    head_class = _head_class(base)
    base.set_attn_implementation(TREE_ATTENTION)
    if head_name == "score" and kept_by_adapter:  # a new head is trained whole, in a copy an adapter
        head.original_module = head_class.sharing(head.original_module)
        for adapter, copy in head.modules_to_save.items():
            head.modules_to_save[adapter] = head_class.sharing(copy)
    elif type(head) in (nn.Linear, FastLinear):
        setattr(base, head_name, head_class.sharing(head))
    else:
        raise ModelError(
            f"the output head {head_name!r} of {type(base).__name__} is a {type(head).__name__}, and its weight is "
            f"read directly; leave {head_name!r} out of the adapter's target_modules and modules_to_save, and out of "
            "quantisation."
        )
    narrow_last_layer(base)
    use_fast_products(base)
    logger.info("%s reads prompt trees", type(base).__name__)
    return True


class HoldsPolicy(nn.Module):
    """A module that trains a policy along with more; where a model is looked into, it stands for its policy."""

    policy: PreTrainedModel | PeftModel


def unwrapped(model: Any) -> Any:
    """What DDP, FSDP and torch.compile wrap."""
    return extract_model_from_parallel(model)


def policy_of(model: Any) -> Any:
    """The policy, a plain or PEFT model, inside whatever trains it."""
    model = unwrapped(model)
    return model.policy if isinstance(model, HoldsPolicy) else model


def base_model(model: Any) -> PreTrainedModel:
    """The transformers model inside DDP, FSDP, torch.compile and PEFT wrappers, the policy's where a module holds
    one."""
    model = policy_of(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def learns_a_prompt(model: Any) -> bool:
    """Whether the model's adapter puts virtual tokens before every sequence (prompt tuning, prefix tuning), which a
    row of trees, with its many sequences, has no place for."""
    policy = policy_of(model)
    return isinstance(policy, PeftModel) and policy.active_peft_config.is_prompt_learning


def num_virtual_tokens(model: Any) -> int:
    """Rows of the model's logits that come before those of a sequence's own tokens: 0 without an adapter at work, and
    where it begins sequences in the cache instead (prefix tuning)."""
    policy = policy_of(model)
    if not learns_a_prompt(policy) or not policy.has_active_enabled_adapter:
        return 0
    config = policy.active_peft_config
    return 0 if config.peft_type == PeftType.PREFIX_TUNING else config.num_virtual_tokens


def output_head(model: nn.Module) -> nn.Module:
    """The language-model head."""
    return base_model(model).get_output_embeddings()


def score_head(model: nn.Module) -> nn.Module | None:
    """The classification head of a decoder, also where an adapter keeps a trained copy of it; None for an encoder."""
    head = getattr(base_model(model), "score", None)
    if isinstance(head, ModulesToSaveWrapper):
        return head.modules_to_save[head.active_adapters[0]]
    return head


def pad_token_id(model: nn.Module) -> int:
    token_id = base_model(model).config.get_text_config().pad_token_id
    return 0 if token_id is None else token_id


def _head_class(model: PreTrainedModel) -> type[TargetHead | ScoreHead]:
    if "TokenClassification" in type(model).__name__:
        return LabelHead
    return ScoreHead if "SequenceClassification" in type(model).__name__ else TargetHead


def _head_name(model: PreTrainedModel) -> str:
    if "SequenceClassification" in type(model).__name__ or "TokenClassification" in type(model).__name__:
        return "score"
    head = model.get_output_embeddings()
    return next((name for name, child in model.named_children() if child is head), "lm_head")


def _why_not(model: PreTrainedModel, head_name: str) -> str | None:
    """The reason why a model cannot read trees, or None."""
    config = model.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention is not built on transformers' AttentionInterface"
    if not hasattr(model, head_name):
        return f"it has no {head_name!r}, so it is not a decoder"
    if head_name != "score" and "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return "its forward takes no logits_to_keep"
    if model.config is not config or hasattr(model.config, "vision_config"):
        return "it reads more than text"
    other_layers = set(getattr(config, "layer_types", None) or ()) - _READABLE_LAYERS
    if other_layers:
        return f"it has layers of type {', '.join(sorted(other_layers))}"
    for name in ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            return f"its {name} acts outside attention and head"
    return None
