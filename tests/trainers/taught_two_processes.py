"""Run by the launcher in test_distillation_processes.py: trains three steps, evaluates and writes what came out."""

import sys
from pathlib import Path
from typing import Any

from tests.models import tiny_causal_lm
from tests.processes import leave_outcome
from tests.trainers.online import questions
from tests.trainers.online_two_processes import complete
from tests.trainers.paired import build_paired
from tests.trainers.taught import build_taught
from tuneline.judges import FunctionJudge
from tuneline.rollout.scripted import ScriptedEngine


def main(method: str, per_device: str, folder: str) -> None:
    rows = questions(4).add_column("completion", [" yes", " no", " perhaps so", " 3"])
    settings: dict[str, Any] = dict(
        max_steps=3,
        per_device_train_batch_size=int(per_device),
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=2 * int(per_device),
        train_dataset=rows,
        eval_dataset=rows.select(range(3)),
        rollout_engine=ScriptedEngine(complete),
        learning_rate=0.05,
        optim="sgd",
        lr_scheduler_type="constant",
    )
    if method in ("GKD", "Distillation"):
        trainer = build_taught(method, Path(folder), **settings)
    else:
        judge = FunctionJudge(lambda prompt, a, b: None if "2" in prompt else int(sorted([a, b])[0] == b))
        trainer = build_paired(method, Path(folder), model=tiny_causal_lm(), judge=judge, **settings)
    trainer.train()
    leave_outcome(trainer, trainer.evaluate(), folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
