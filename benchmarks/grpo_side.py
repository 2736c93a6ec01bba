"""One side of the GRPO benchmark, in a process of its own: `python -m benchmarks.grpo_side trl|tuneline steps|update`.

`steps` are whole: each side draws completions as it does, of the given lengths. In `update` both are handed the same
completions, and what is left is to reward them and to learn from them.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any
from zlib import crc32

from benchmarks.phases import PhasedMeasurement
from benchmarks.rollouts import EngineOfLengths, Script, generate_of_lengths


class GRPOMeasurement(PhasedMeasurement):
    @property
    def training_arguments(self) -> dict[str, Any]:
        w = self.workload
        return (
            self.arguments_of_all_methods
            | self.sizes
            | {
                "gradient_accumulation_steps": w["prompts"] * w["num_generations"] // w["batch_size"],
                "num_generations": w["num_generations"],
                "max_completion_length": w["max_completion_length"],
                "shuffle_dataset": False,
            }
        )

    def measured(self, log_history: list[dict[str, float]]) -> dict[str, Any]:
        steps = [line for line in log_history if "loss" in line]
        return super().measured(log_history) | {
            "entropies": [line.get("entropy", math.nan) for line in steps],
            "mean_lengths": [line["completions/mean_length"] for line in steps],
        }


def lottery(completions: list[str], **columns: Any) -> list[float]:
    """A reward that costs nothing and differs between completions, so that all of them teach something on both sides;
    equal texts get equal rewards."""
    return [crc32(text.encode()) / 2**32 for text in completions]


def make_trainer(library: Any, measurement: GRPOMeasurement, script: Script, part: str) -> Any:
    return library.GRPOTrainer(
        model=measurement.model,
        reward_funcs=lottery,
        args=library.GRPOConfig(**measurement.training_arguments),
        train_dataset=measurement.dataset().select_columns(["prompt"]),
        callbacks=[measurement],
        rollout_func=script.rollout_func if part == "update" else None,
    )


def make_trl_trainer(measurement: GRPOMeasurement, script: Script, part: str) -> Any:
    import trl

    trainer = make_trainer(trl, measurement, script, part)
    if part == "steps":
        trainer.model.generate = generate_of_lengths(trainer.model.generate, script)
    measurement.phases.watch("preparing", trainer, "_generate_and_score_completions")
    measurement.phases.watch("rollout", trainer, "_generate")
    measurement.phases.watch("rewards", trainer, "_calculate_rewards")
    return trainer


def make_tuneline_trainer(measurement: GRPOMeasurement, script: Script, part: str) -> Any:
    import tuneline

    trainer = make_trainer(tuneline, measurement, script, part)
    if part == "steps":  # not by rollout_engine=, which would have the engine's log-probabilities corrected
        trainer.collector.engine = EngineOfLengths(trainer.collector.engine, script)
    measurement.phases.watch("preparing", trainer, "collect")
    trainer.collector.timed = measurement.phases.timed
    return trainer


def main(side: str, part: str) -> None:
    measurement = GRPOMeasurement.begin()
    with (measurement.folder / "rows.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    script = Script(rows, rows[0]["completions"][0][-1])
    trainer = (make_trl_trainer if side == "trl" else make_tuneline_trainer)(measurement, script, part)
    measurement.phases.watch("forward", trainer, "compute_loss")
    measurement.phases.watch("backward", trainer.accelerator, "backward")
    trainer.train()
    measurement.finish(trainer.state.log_history)


if __name__ == "__main__":
    main(*sys.argv[1:])
