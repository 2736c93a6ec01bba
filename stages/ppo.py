"""ppo: proximal policy optimization of the SFT model, by default on what the line's reward model says. Started by
`accelerate launch -m stages.ppo`.

The value function starts from the line's reward model where that is among the rewards. A verifier judges the rollouts
too, at no part in what is learned (`rewards/verifier/mean`): its curve beside the reward's shows whether the policy
gets better or only finds what the reward model likes. Rollouts are kept as by the grpo stage; see `stages.rollouts`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.context import StageContext
from stages.gates import Gates, check_reward_model
from stages.gates_models import check_tokenizers, gated_online
from stages.rewards import find_verifier, load_rewards
from stages.rollouts import RolloutTables, join_tables
from stages.schema import REWARD_METRICS, REWARD_MODEL
from stages.training import lora, model_source, read_rows, run_training, training_arguments
from tuneline import PPOConfig, PPOTrainer
from tuneline.errors import DataError
from tuneline.models.loading import load_causal_lm


def main() -> None:
    context = StageContext.load("ppo")
    section = context.config.ppo
    name, keywords, tokenizer = model_source(context, Path("models/sft"))
    tables = RolloutTables(context.work / "rollouts")
    gates = Gates.of(context)
    has_reward_model = any(reward.model is True for reward in section.rewards)
    if has_reward_model:
        check_reward_model(gates, Path(REWARD_METRICS))

    def make_trainer() -> PPOTrainer:
        prompts = read_rows(Path("data/prepared/grpo/train.parquet"))
        if not len(prompts):
            raise DataError("data/prepared/grpo has no prompts: plain text asks nothing; name some in prepare.prompts.")
        functions, tokenizers = load_rewards(section.rewards, context.config.model.dtype)
        check_tokenizers(gates, tokenizer, tokenizers, prompts)
        weights = [reward.weight for reward in section.rewards]
        verifier = find_verifier(section.verifier, prompts)
        if verifier is not None:
            functions, tokenizers, weights = [*functions, verifier], [*tokenizers, None], [*weights, 0.0]
        args = training_arguments(context, section, PPOConfig, reward_weights=weights)
        trainer = gated_online(PPOTrainer, gates)(
            args=args,
            model=load_causal_lm(name, **keywords),
            value_model=REWARD_MODEL if has_reward_model and args.value_function in (None, "model") else None,
            reward_funcs=functions,
            reward_processing_classes=tokenizers,
            train_dataset=prompts,
            processing_class=tokenizer,
            peft_config=lora(section, "CAUSAL_LM"),
            callbacks=[tables],
        )
        trainer.add_rollout_listener(lambda step, table: tables.keep(step, table, trainer.rewards.names))
        return trainer

    trainer = run_training(context, make_trainer, policy_alone)
    if trainer.is_world_process_zero():
        join_tables(tables.folder, context.report / "rollouts" / "rollouts.parquet")


def policy_alone(module: Any, tensors: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What is published of the module that PPO trains; the value function is of no use afterwards."""
    prefix = "policy."
    return module.policy, {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


if __name__ == "__main__":
    main()
