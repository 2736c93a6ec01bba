"""Run by the launcher in test_processes.py: two steps, each process with its share of a batch."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from tests.classic.models import some_batch, step_trainer, with_value_head
from tuneline.classic.statistics import scalars


def main(folder: str) -> None:
    state = PartialState(cpu=True)
    own = slice(state.process_index, None, state.num_processes)
    size = 4 // state.num_processes
    trainer = step_trainer(
        ref_model=with_value_head(seed=5), lr=0.1, batch_size=size, mini_batch_size=size, ppo_epochs=2, target=0.5,
        whiten_rewards=True, use_score_scaling=True, use_score_norm=True, max_grad_norm=1.0,
    )  # fmt: skip
    logs = []
    for seed in range(2):
        queries, responses, scores, masks = some_batch(seed=seed)
        stats = trainer.step(queries[own], responses[own], scores[own], masks[own])
        logs.append({name: value for name, value in scalars(stats).items() if not name.startswith("time/")})
    if state.is_main_process:
        weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        save_file(weights | {"kl_coef": torch.tensor(trainer.kl_ctl.value)}, Path(folder) / "weights.safetensors")
        (Path(folder) / "logs.json").write_text(json.dumps(logs))


if __name__ == "__main__":
    main(*sys.argv[1:])
