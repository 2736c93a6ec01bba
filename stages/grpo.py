"""grpo: online reinforcement learning of the SFT model, by GRPO or RLOO. Started by `accelerate launch -m stages.grpo`.

Beside what every training stage leaves, reports/grpo/rollouts/rollouts.parquet has all that the policy wrote; see
`stages.rollouts`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.context import StageContext
from stages.gates import Gates, check_reward_model
from stages.gates_models import check_tokenizers, gated_online
from stages.rewards import load_rewards
from stages.rollouts import RolloutTables, join_tables
from stages.schema import REWARD_METRICS
from stages.training import lora, model_source, read_rows, run_training, training_arguments
from tuneline import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from tuneline.errors import DataError
from tuneline.models.loading import load_causal_lm

TRAINERS: dict[str, tuple[Any, Any]] = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def main() -> None:
    context = StageContext.load("grpo")
    section = context.config.grpo
    trainer_class, config_class = TRAINERS[section.method]
    name, keywords, tokenizer = model_source(context, Path("models/sft"))
    tables = RolloutTables(context.work / "rollouts")
    gates = Gates.of(context)
    if any(reward.model is True for reward in section.rewards):
        check_reward_model(gates, Path(REWARD_METRICS))

    def make_trainer() -> Any:
        prompts = read_rows(Path("data/prepared/grpo/train.parquet"))
        if not len(prompts):
            raise DataError("data/prepared/grpo has no prompts: plain text asks nothing; name some in prepare.prompts.")
        functions, tokenizers = load_rewards(section.rewards, context.config.model.dtype)
        check_tokenizers(gates, tokenizer, tokenizers, prompts)
        trainer = gated_online(trainer_class, gates)(
            model=load_causal_lm(name, **keywords),
            reward_funcs=functions,
            args=training_arguments(
                context, section, config_class, reward_weights=[reward.weight for reward in section.rewards]
            ),
            train_dataset=prompts,
            processing_class=tokenizer,
            reward_processing_classes=tokenizers,
            peft_config=lora(section, "CAUSAL_LM"),
            callbacks=[tables],
        )
        trainer.add_rollout_listener(lambda step, table: tables.keep(step, table, trainer.rewards.names))
        return trainer

    trainer = run_training(context, make_trainer)
    if trainer.is_world_process_zero():
        join_tables(tables.folder, context.report / "rollouts" / "rollouts.parquet")


if __name__ == "__main__":
    main()
