"""grpo: online reinforcement learning of the SFT model, by GRPO or RLOO. Started by `accelerate launch -m stages.grpo`.

Beside what every training stage leaves, reports/grpo/rollouts/rollouts.parquet has all that the policy wrote; see
`stages.rollouts`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.context import StageContext
from stages.rollouts import RolloutTables, join_tables
from stages.schema import REWARD_MODEL, Reward
from stages.training import lora, model_source, read_rows, run_training, training_arguments
from tuneline import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from tuneline.errors import DataError
from tuneline.models.loading import load_causal_lm, load_reward_model, load_tokenizer
from tuneline.rewards import get_reward, url_reward

TRAINERS: dict[str, tuple[Any, Any]] = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def main() -> None:
    context = StageContext.load("grpo")
    section = context.config.grpo
    trainer_class, config_class = TRAINERS[section.method]
    name, keywords, tokenizer = model_source(context, Path("models/sft"))
    tables = RolloutTables(context.work / "rollouts")

    def make_trainer() -> Any:
        prompts = read_rows(Path("data/prepared/grpo/train.parquet"))
        if not len(prompts):
            raise DataError("data/prepared/grpo has no prompts: plain text asks nothing; name some in prepare.prompts.")
        functions, tokenizers = zip(
            *(_reward(reward, context.config.model.dtype) for reward in section.rewards), strict=True
        )
        trainer = trainer_class(
            model=load_causal_lm(name, **keywords),
            reward_funcs=list(functions),
            args=training_arguments(
                context, section, config_class, reward_weights=[reward.weight for reward in section.rewards]
            ),
            train_dataset=prompts,
            processing_class=tokenizer,
            reward_processing_classes=list(tokenizers),
            peft_config=lora(section, "CAUSAL_LM"),
            callbacks=[tables],
        )
        trainer.add_rollout_listener(lambda step, table: tables.keep(step, table, trainer.rewards.names))
        return trainer

    trainer = run_training(context, make_trainer)
    if trainer.is_world_process_zero():
        join_tables(tables.folder, context.report / "rollouts" / "rollouts.parquet")


def _reward(reward: Reward, dtype: str) -> tuple[Any, Any]:
    """A reward function or model, and the tokenizer of a model."""
    if reward.name is not None:
        return get_reward(reward.name, **reward.options), None
    if reward.url is not None:
        return url_reward(reward.url, **reward.options), None
    place = REWARD_MODEL if reward.model is True else str(reward.model)
    return load_reward_model(place, dtype=dtype), load_tokenizer(place)


if __name__ == "__main__":
    main()
