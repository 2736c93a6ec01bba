"""sft: supervised fine-tuning of the base model on demonstrations. Started by `accelerate launch -m stages.sft`."""

from pathlib import Path

from stages.context import StageContext
from stages.training import lora, model_source, read_rows, run_training, training_arguments
from tuneline import SFTConfig, SFTTrainer
from tuneline.models.loading import load_causal_lm


def main() -> None:
    context = StageContext.load("sft")
    section = context.config.sft
    name, keywords, tokenizer = model_source(context, Path("models/base"))
    data = Path("data/prepared/sft")

    def make_trainer() -> SFTTrainer:
        return SFTTrainer(
            model=load_causal_lm(name, **keywords),
            args=training_arguments(context, section, SFTConfig),
            train_dataset=read_rows(data / "train.parquet"),
            eval_dataset=read_rows(data / "eval.parquet"),
            processing_class=tokenizer,
            peft_config=lora(section, "CAUSAL_LM"),
        )

    run_training(context, make_trainer)


if __name__ == "__main__":
    main()
