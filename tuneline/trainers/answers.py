"""What the policy in training answers to fixed prompts, for the callbacks that look at it now and then."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from tuneline.errors import ConfigError
from tuneline.models.layouts import base_model, policy_of
from tuneline.rollout.protocol import Sampling, rollout_seed
from tuneline.rollout.stopping import stop_token_ids
from tuneline.rollout.transformers_engine import TransformersEngine
from tuneline.trainers.base import BaseTrainer
from tuneline.trainers.drawing import draw


def prompt_rows(trainer: BaseTrainer, num_prompts: int | None, prompts: list[Any] | None) -> list[dict[str, Any]]:
    """The first prompts, text or messages: those given, or those of the trainer's evaluation set, also where it holds
    them as tokens.

    Raises:
        ConfigError: the trainer has no evaluation set, several, or one without prompts.
    """
    if prompts is not None:
        return [{"prompt": prompt} for prompt in prompts[:num_prompts]]
    rows = trainer.eval_dataset
    names = () if rows is None or isinstance(rows, dict) else rows.column_names or ()
    if "prompt" in names:
        return [{"prompt": prompt} for prompt in list(rows["prompt"])[:num_prompts]]
    if "prompt_ids" in names:
        tokens = [list(ids) for ids in list(rows["prompt_ids"])[:num_prompts]]
        decode = trainer.processing_class.decode
        return [{"prompt": decode(ids, skip_special_tokens=True), "prompt_input_ids": ids} for ids in tokens]
    raise ConfigError("the trainer has no evaluation set with a column 'prompt'; pass prompts.")


class Answers:
    """Calling it has the policy answer, by the transformers engine and the same draws each time.

    Args:
        rows: of `prompt_rows`.
        purpose: what the draws are named by.
        generation_config: max_new_tokens, do_sample, temperature, top_p and top_k are read; None for the likeliest
            tokens, at most 64.

    Raises:
        ConfigError: the policy's weights are spread over processes, of which one alone would answer.
    """

    def __init__(
        self,
        trainer: BaseTrainer,
        rows: list[dict[str, Any]],
        purpose: str,
        generation_config: GenerationConfig | None,
    ):
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ConfigError(
                f"{purpose}: the main process draws answers from the policy, whose weights are spread over processes "
                "here; train with DDP, or leave the callback out."
            )
        self.trainer, self.rows, self.purpose = trainer, rows, purpose
        stops = tuple(stop_token_ids(base_model(trainer.model), trainer.processing_class))
        self.sampling = _sampling(generation_config, stops)

    def __call__(self) -> list[Any]:
        policy = policy_of(self.trainer.model)
        seeds = [rollout_seed(self.trainer.args.seed, self.purpose, i) for i in range(len(self.rows))]
        engine = TransformersEngine(policy)
        with self.trainer.compute_loss_context_manager():
            return draw(engine, self.trainer.processing_class, self.rows, seeds, self.sampling).completions


def _sampling(config: GenerationConfig | None, stops: tuple[int, ...]) -> Sampling:
    if config is None:
        return Sampling(max_new_tokens=64, temperature=0.0, stop_token_ids=stops)
    return Sampling(
        max_new_tokens=64 if config.max_new_tokens is None else config.max_new_tokens,
        temperature=(1.0 if config.temperature is None else config.temperature) if config.do_sample else 0.0,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        stop_token_ids=stops,
    )
