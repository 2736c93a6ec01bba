"""What an online trainer's checkpoint carries beside weights: the experience that waits to be learned from, and the
numbers that its algorithm adapts; and what is measured or adapted once an optimizer step."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tuneline.errors import ConfigError
from tuneline.trainers.experience import load_experiences, save_experiences


class StepTime(TrainerCallback):
    """Records `step_time`: seconds of an optimizer step with all that is drawn, rewarded and scored for it; what is
    written, evaluated or saved between two steps is not of either."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._begun = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.record({"step_time": torch.tensor(time.perf_counter() - self._begun)})
        self._restart()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._restart()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._restart()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._restart()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._restart()

    def _restart(self) -> None:
        self._begun = time.perf_counter()


class EntropyStep(TrainerCallback):
    """Adapts the entropy coefficient once an optimizer step, by the entropy over all of it."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        total, count = self.trainer.accelerator.reduce(self.trainer._entropy_of_step, "sum").tolist()
        self.trainer.entropy_coefficient.update(total / max(count, 1.0))
        self.trainer._entropy_of_step = torch.zeros_like(self.trainer._entropy_of_step)
        self.trainer.record({"entropy_coef": torch.tensor(self.trainer.entropy_coefficient.coefficient)})


class OnlineState(TrainerCallback):
    """Each process writes its part into the checkpoint and reads it back, so that a resumed run is the same run."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = self._folder(args, state)
        folder.mkdir(parents=True, exist_ok=True)
        queue = list(self.trainer.queue)
        if queue:
            save_experiences(queue, folder / f"experience-{args.process_index}.safetensors")
        numbers = {"num_queued": len(queue), **self.trainer.algorithm_state()}
        (folder / f"state-{args.process_index}.json").write_text(json.dumps(numbers))
        self.trainer.save_algorithm_weights(folder)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.queue.clear()
        self.trainer.collector.forget_weights()
        if state.global_step == 0:
            return
        path = self._folder(args, state) / f"state-{args.process_index}.json"
        if not path.is_file():
            raise ConfigError(
                f"cannot resume: {path} is missing, which holds what this process had still to learn from; resume with "
                "as many processes as the checkpoint was written by, and with the output_dir that holds it."
            )
        numbers = json.loads(path.read_text())
        if numbers.pop("num_queued"):
            experiences = load_experiences(path.with_name(f"experience-{args.process_index}.safetensors"))
            self.trainer.queue.extend(experiences)
        self.trainer.load_algorithm_state(numbers)
        self.trainer.load_algorithm_weights(path.parent)

    @staticmethod
    def _folder(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "online"
