"""dpo: preference optimization of the SFT model, its reference too. Started by `accelerate launch -m stages.dpo`."""

from pathlib import Path

from stages.context import StageContext
from stages.gates import Gates
from stages.gates_models import check_ended_answers, gated_dpo
from stages.training import model_source, train_policy
from tuneline import DPOConfig, DPOTrainer


def main() -> None:
    context = StageContext.load("dpo")
    policy, pairs = Path("models/sft"), Path("data/prepared/preference")
    gates = Gates.of(context)
    check_ended_answers(gates, *model_source(context, policy), pairs / "train.parquet", context.config.seed)
    train_policy(context, gated_dpo(DPOTrainer, gates), DPOConfig, policy, pairs)


if __name__ == "__main__":
    main()
