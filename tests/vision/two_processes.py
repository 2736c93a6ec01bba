"""Run by the launcher in test_processes.py: trains two steps, evaluates and writes what came out."""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from tests.trainers.build import weights, with_plain_descent
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
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        save_file(weights(trainer), Path(folder) / "weights.safetensors")
        logs = [line for line in trainer.state.log_history if "loss" in line]
        (Path(folder) / "logs.json").write_text(json.dumps([*logs, metrics]))


if __name__ == "__main__":
    main(*sys.argv[1:])
