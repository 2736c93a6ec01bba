"""sft: supervised fine-tuning of the base model on demonstrations. Started by `accelerate launch -m stages.sft`."""

from pathlib import Path

from stages.context import StageContext
from stages.training import train_policy
from tuneline import SFTConfig, SFTTrainer


def main() -> None:
    train_policy(StageContext.load("sft"), SFTTrainer, SFTConfig, Path("models/base"), Path("data/prepared/sft"))


if __name__ == "__main__":
    main()
