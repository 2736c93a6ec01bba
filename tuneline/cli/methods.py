"""The methods that the command line trains by, each with its trainer and options. Imports nothing heavy."""

from typing import NamedTuple


class Method(NamedTuple):
    """Names in `tuneline`, and what the help says."""

    trainer: str
    config: str
    help: str
    takes_rewards: bool = False  # functions and models that reward what it draws


METHODS = {
    "sft": Method("SFTTrainer", "SFTConfig", "Fine-tune a model on texts, conversations or demonstrations."),
    "reward": Method("RewardTrainer", "RewardConfig", "Train a reward model on preferences."),
    "prm": Method("PRMTrainer", "PRMConfig", "Train a reward model of the steps of a solution."),
    "dpo": Method("DPOTrainer", "DPOConfig", "Train on preferences against a reference (DPO and relatives)."),
    "kto": Method("KTOTrainer", "KTOConfig", "Train on single judged completions (KTO)."),
    "bco": Method("BCOTrainer", "BCOConfig", "Train on single judged completions by a binary classifier (BCO)."),
    "orpo": Method("ORPOTrainer", "ORPOConfig", "Train on preferences without a reference (ORPO)."),
    "cpo": Method("CPOTrainer", "CPOConfig", "Train on preferences without a reference (CPO, SimPO, AlphaPO)."),
    "tpo": Method("TPOTrainer", "TPOConfig", "Train on preferences with a gold response (TPO)."),
    "ppo": Method("PPOTrainer", "PPOConfig", "Train by rewards, with a value function (PPO).", True),
    "grpo": Method("GRPOTrainer", "GRPOConfig", "Train by rewards relative to a group (GRPO and relatives).", True),
    "rloo": Method("RLOOTrainer", "RLOOConfig", "Train by rewards, leave-one-out (RLOO).", True),
    "online-dpo": Method("OnlineDPOTrainer", "OnlineDPOConfig", "Train on the better of two completions drawn.", True),
    "xpo": Method("XPOTrainer", "XPOConfig", "Online DPO with a bonus for exploring (XPO).", True),
    "nash-md": Method("NashMDTrainer", "NashMDConfig", "Train against a mixture with the reference (Nash-MD).", True),
    "distillation": Method(
        "DistillationTrainer", "DistillationConfig", "Learn from a teacher on the student's own text."
    ),
    "distill": Method("DistillationTrainer", "DistillationConfig", "The same as distillation."),
    "server-distillation": Method(
        "ServerDistillationTrainer", "ServerDistillationConfig", "Learn from a teacher behind a vLLM server."
    ),
    "gkd": Method("GKDTrainer", "GKDConfig", "Learn from a teacher on texts and the student's own (GKD)."),
}
