"""dpo: preference optimization of the SFT model, its reference too. Started by `accelerate launch -m stages.dpo`."""

from pathlib import Path

from stages.context import StageContext
from stages.training import train_policy
from tuneline import DPOConfig, DPOTrainer


def main() -> None:
    train_policy(StageContext.load("dpo"), DPOTrainer, DPOConfig, Path("models/sft"), Path("data/prepared/preference"))


if __name__ == "__main__":
    main()
