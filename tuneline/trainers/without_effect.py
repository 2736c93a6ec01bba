"""Options of TRL that have nothing to act on here: taken, and said once in the log with the reason."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from tuneline.logging import get_logger

logger = get_logger(__name__)

WITHOUT_EFFECT = {
    "assistant_only_loss": "what is learned from is the completion, and no other turn",
    "completion_only_loss": "what is learned from is the completion, whatever precedes it",
    "cast_lm_head_to_fp32": "the head sums in float32 whatever its weights are",
    "cache_implementation": "the engine that draws has a cache of its own",
    "ds3_gather_for_generation": "under DeepSpeed vLLM draws, from weights that are handed to it",
    "log_completions_hub_repo": "nothing is sent anywhere; the completions are in output_dir/completions",
    "packing": "rows of prompt trees have no padding that packing could save",
    "eval_packing": "rows of prompt trees have no padding that packing could save",
    "packing_strategy": "rows of prompt trees have no padding that packing could save",
    "padding_free": "rows of prompt trees have no padding",
    "transformers_continuous_batching_config": "the engine that draws always goes on with the next completion in line",
    "use_transformers_continuous_batching": "the engine that draws always goes on with the next completion in line",
    "use_transformers_paged": "the engine that draws always goes on with the next completion in line",
    "vllm_group_port": "weights go to a server through memory and files, over no socket of their own",
}

_said: set[str] = set()


def say_what_has_no_effect(config: Any) -> None:
    """Log each option of `WITHOUT_EFFECT` that is set to other than its default, once a process and configuration."""
    for one in fields(config):
        reason, where = WITHOUT_EFFECT.get(one.name), f"{type(config).__name__}.{one.name}"
        if reason is not None and getattr(config, one.name) != one.default and where not in _said:
            _said.add(where)
            logger.warning("%s=%r has no effect here: %s", where, getattr(config, one.name), reason)
