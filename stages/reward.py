"""reward: a reward model on the SFT model's backbone. Started by `accelerate launch -m stages.reward`."""

from pathlib import Path

from transformers import logging, set_seed

from stages.context import StageContext
from stages.training import lora, model_source, read_rows, run_training, training_arguments
from tuneline import RewardConfig, RewardTrainer
from tuneline.models.loading import load_reward_model


def main() -> None:
    context = StageContext.load("reward")
    section = context.config.reward
    name, keywords, tokenizer = model_source(context, Path("models/sft"))
    data = Path("data/prepared/preference")

    def make_trainer() -> RewardTrainer:
        set_seed(context.config.seed)  # the score head is new, and transformers need not warn of that
        logging.set_verbosity_error()
        model = load_reward_model(name, **keywords)
        logging.set_verbosity_warning()
        return RewardTrainer(
            model=model,
            args=training_arguments(context, section, RewardConfig),
            train_dataset=read_rows(data / "train.parquet"),
            eval_dataset=read_rows(data / "eval.parquet"),
            processing_class=tokenizer,
            peft_config=lora(section, "SEQ_CLS"),
        )

    run_training(context, make_trainer)


if __name__ == "__main__":
    main()
