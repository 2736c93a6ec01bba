"""Run by the launcher in test_processes.py: trains two steps, evaluates and writes what came out."""

import sys
from pathlib import Path

from tests.processes import leave_outcome
from tests.trainers.build import build, with_plain_descent
from tests.trainers.rows import demonstrations, judged, preferences, solutions


def main(method: str, per_device: str, folder: str) -> None:
    options = {
        "max_steps": 2,
        "per_device_train_batch_size": int(per_device),
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 3,
        "max_grad_norm": 0,
    }
    if method == "dpo":
        options |= {"loss_type": ["sigmoid", "sft"], "precompute_ref_log_probs": True}
    match method:
        case "sft":
            evaluation = demonstrations(11)
        case "kto" | "bco":
            evaluation = judged(11)
        case "prm":
            evaluation = solutions(11)
        case _:
            evaluation = preferences(11, margin=method == "reward")
    trainer = with_plain_descent(build(method, Path(folder), options=options, eval_dataset=evaluation), 0.1)
    trainer.train()
    leave_outcome(trainer, trainer.evaluate(), folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
