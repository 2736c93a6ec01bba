"""dpo: preference optimization of the SFT model, its reference too. Started by `accelerate launch -m stages.dpo`."""

from pathlib import Path

from stages.context import StageContext
from stages.training import lora, model_source, read_rows, run_training, training_arguments
from tuneline import DPOConfig, DPOTrainer
from tuneline.models.loading import load_causal_lm


def main() -> None:
    context = StageContext.load("dpo")
    section = context.config.dpo
    name, keywords, tokenizer = model_source(context, Path("models/sft"))
    data = Path("data/prepared/preference")

    def make_trainer() -> DPOTrainer:
        return DPOTrainer(
            model=load_causal_lm(name, **keywords),
            args=training_arguments(context, section, DPOConfig),
            train_dataset=read_rows(data / "train.parquet"),
            eval_dataset=read_rows(data / "eval.parquet"),
            processing_class=tokenizer,
            peft_config=lora(section, "CAUSAL_LM"),
        )

    run_training(context, make_trainer)


if __name__ == "__main__":
    main()
