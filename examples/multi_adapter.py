"""Policy, value function, reward and reference of PPO on one base model: three adapters, and none.

    python examples/multi_adapter.py

A small model has learned to list colours. People, so the example has it, like warm ones: pairs of lists say which was
preferred. A reward model learns that as an adapter on the base; PPO then trains the policy as another adapter, with a
value function that is a third and starts from the reward. The reference is the base with its adapters off. All runs on
two processor cores in about a minute; nothing is downloaded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tuneline import PPOConfig, PPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from tuneline.evaluation.intervals import Interval, wilson_interval
from tuneline.models.tiny import make_model
from tuneline.rewards import RewardAdapter
from tuneline.rollout.protocol import Request, Sampling, rollout_seed
from tuneline.rollout.transformers_engine import TransformersEngine

WARM, COLD = ("red", "orange", "yellow", "pink"), ("blue", "green", "grey", "cyan")
PROMPT = "Colours:"
SIZES = dict(hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
MODEL = dict(model_type="qwen2", max_position_embeddings=64, initializer_range=0.05, tie_word_embeddings=True)
QUIET = dict(report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", logging_steps=20)


def adapter() -> LoraConfig:
    return LoraConfig(r=8, target_modules="all-linear")


def colours(random: Random) -> list[str]:
    return [random.choice(WARM + COLD) for _ in range(4)]


def listed(names: list[str]) -> str:
    return " " + " ".join(names)


def num_warm(names: list[str]) -> int:
    return sum(name in WARM for name in names)


def demonstrations(num_rows: int) -> Dataset:
    random = Random(0)
    return Dataset.from_list([{"prompt": PROMPT, "completion": listed(colours(random))} for _ in range(num_rows)])


def preferences(num_rows: int) -> Dataset:
    """Of two lists the one with more warm colours was preferred."""
    random, rows = Random(1), []
    while len(rows) < num_rows:
        worse, better = sorted((colours(random), colours(random)), key=num_warm)
        if num_warm(worse) < num_warm(better):
            rows.append({"prompt": PROMPT, "chosen": listed(better), "rejected": listed(worse)})
    return Dataset.from_list(rows)


def share_warm(model, tokenizer, num_lists: int = 200) -> Interval:
    """Of the words of lists that the model writes, with its 95 % interval."""
    sampling = Sampling(max_new_tokens=40, stop_token_ids=(tokenizer.eos_token_id,))
    request = Request(tokenizer(PROMPT)["input_ids"], [rollout_seed("test", i) for i in range(num_lists)])
    lists = TransformersEngine(model).generate([request], sampling)[0]
    words = [word for one in lists for word in tokenizer.decode(one.ids, skip_special_tokens=True).split()]
    return wilson_interval(num_warm(words), len(words))


def train_base(folder: Path) -> None:
    model, tokenizer = make_model({**MODEL, **SIZES}, seed=0)
    arguments = SFTConfig(
        str(folder), per_device_train_batch_size=32, max_steps=150, learning_rate=5e-3, seed=0, **QUIET
    )
    SFTTrainer(model, arguments, train_dataset=demonstrations(2000), processing_class=tokenizer).train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_reward(base: Path, folder: Path) -> None:
    arguments = RewardConfig(
        str(folder), per_device_train_batch_size=16, max_steps=100, learning_rate=3e-3, seed=0, **QUIET
    )
    trainer = RewardTrainer(str(base), arguments, train_dataset=preferences(1600), peft_config=adapter())
    trainer.train()
    trainer.save_model(str(folder))


def make_trainer(base: Path, reward: Path, folder: Path) -> PPOTrainer:
    arguments = PPOConfig(
        str(folder),
        per_device_train_batch_size=64,
        num_ppo_epochs=2,
        num_mini_batches=2,
        response_length=40,
        temperature=1.0,
        max_steps=80,
        learning_rate=1e-3,
        cliprange_value=None,  # scores differ by units, and the value starts from them
        kl_coef=0.3,
        value_function="adapter",
        seed=0,
        **QUIET,
    )
    return PPOTrainer(
        arguments,
        model=AutoModelForCausalLM.from_pretrained(base),
        reward_funcs=RewardAdapter(reward),
        value_model=str(reward),
        train_dataset=Dataset.from_list([{"prompt": PROMPT}] * 128),
        peft_config=adapter(),
    )


def main(folder: str) -> tuple[Interval, Interval]:
    base, reward, run = (Path(folder) / name for name in ("base", "reward", "ppo"))
    train_base(base)
    train_reward(base, reward)
    trainer = make_trainer(base, reward, run)
    policy = trainer.module.policy
    before = share_warm(policy, trainer.processing_class)
    trainer.train()
    after = share_warm(policy, trainer.processing_class)
    policy.save_pretrained(run / "policy")  # the policy's adapter alone
    sizes = [p.numel() for p in trainer.module.parameters()]
    trained = sum(p.numel() for p in trainer.module.parameters() if p.requires_grad)
    print(f"warm colours: {before.estimate:.3f} ({before.low:.3f}-{before.high:.3f}) before PPO, ", end="")
    print(f"{after.estimate:.3f} ({after.low:.3f}-{after.high:.3f}) after")
    print(f"{sum(sizes):,} parameters in memory for four roles, {trained:,} of them trained")
    return before, after


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
