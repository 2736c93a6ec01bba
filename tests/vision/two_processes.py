"""Run by the launcher in test_processes.py: trains two steps, evaluates and writes what came out."""

import sys
from pathlib import Path

from tests.processes import leave_outcome
from tests.trainers.build import with_plain_descent
from tests.vision.build import ROWS, build


def main(method: str, per_device: str, folder: str) -> None:
    """Of the rows of a micro-batch one process may have images alone, or none."""
    options = {
        "max_steps": 2,
        "per_device_train_batch_size": int(per_device),
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 3,
        "max_grad_norm": 0,
        "gradient_checkpointing": True,
    }
    trainer = with_plain_descent(
        build(method, Path(folder), options=options, eval_dataset=ROWS[method](7)), learning_rate=0.1
    )
    trainer.train()
    leave_outcome(trainer, trainer.evaluate(), folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
