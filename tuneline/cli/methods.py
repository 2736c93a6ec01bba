"""The methods that the command line trains by, each with its trainer and options. Imports nothing heavy."""

from typing import NamedTuple


class Method(NamedTuple):
    """Names in `tuneline`, and what the help says."""

    trainer: str
    config: str
    help: str
    draws_completions: bool = False  # so it takes reward functions


METHODS = {
    "sft": Method("SFTTrainer", "SFTConfig", "Fine-tune a model on texts, conversations or demonstrations."),
    "reward": Method("RewardTrainer", "RewardConfig", "Train a reward model on preferences."),
    "dpo": Method("DPOTrainer", "DPOConfig", "Train on preferences against a reference (DPO and relatives)."),
    "kto": Method("KTOTrainer", "KTOConfig", "Train on single judged completions (KTO)."),
    "orpo": Method("ORPOTrainer", "ORPOConfig", "Train on preferences without a reference (ORPO)."),
    "cpo": Method("CPOTrainer", "CPOConfig", "Train on preferences without a reference (CPO, SimPO, AlphaPO)."),
    "bco": Method("BCOTrainer", "BCOConfig", "Train on single judged completions by a binary classifier (BCO)."),
    "ppo": Method("PPOTrainer", "PPOConfig", "Train by rewards, with a value function (PPO).", True),
    "grpo": Method("GRPOTrainer", "GRPOConfig", "Train by rewards relative to a group (GRPO and relatives).", True),
    "rloo": Method("RLOOTrainer", "RLOOConfig", "Train by rewards, leave-one-out (RLOO).", True),
}
