"""One side of the generation benchmark, in a process of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteriaList

from benchmarks import FOLDER, RESULT
from benchmarks.generation import GenerationWork
from benchmarks.measure import forget_peak_memory, peak_memory, resident_memory, seconds_waited
from benchmarks.rollouts import RowEnds

Call = list[dict[str, Any]]


def as_trl(model: Any, work: GenerationWork) -> Callable[[Call], int]:
    """`model.generate` as TRL's GRPOTrainer calls it: every prompt G times in one batch, padded on the left.

    The end that a completion has by itself is put on top as a stopping criterion a row.
    """
    eos, pad = model.config.eos_token_id, model.config.pad_token_id
    config = GenerationConfig(
        max_new_tokens=work.max_completion_length,
        do_sample=True,
        pad_token_id=pad,
        eos_token_id=[eos],
        temperature=work.temperature,
        top_p=work.top_p,
        top_k=work.top_k,
        min_p=None,
        repetition_penalty=1.0,
        cache_implementation=None,
        disable_compile=True,
    )

    def generate(call: Call) -> int:
        rows = [(prompt["ids"], length) for prompt in call for length in prompt["lengths"]]
        width = max(len(ids) for ids, _ in rows)
        lengths = torch.tensor([length for _, length in rows])
        with torch.no_grad():
            output = model.generate(
                input_ids=torch.tensor([[pad] * (width - len(ids)) + ids for ids, _ in rows]),
                attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in rows]),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([RowEnds(width + lengths)]),
            )
        num_tokens = 0
        for ids, length in zip(output[:, width:].tolist(), lengths.tolist(), strict=True):
            written = ids[:length]
            num_tokens += written.index(eos) + 1 if eos in written else length
        return num_tokens

    return generate


def as_tuneline(model: Any, work: GenerationWork) -> Callable[[Call], int]:
    from tuneline.rollout.protocol import Request, Sampling, rollout_seed
    from tuneline.rollout.transformers_engine import TransformersEngine

    engine = TransformersEngine(model)
    sampling = Sampling(
        max_new_tokens=work.max_completion_length,
        temperature=work.temperature,
        top_p=work.top_p,
        top_k=work.top_k,
        stop_token_ids=(model.config.eos_token_id,),
    )

    def generate(call: Call) -> int:
        requests = [
            Request(prompt["ids"], [rollout_seed(work.seed, row, copy)], max_new_tokens=length)
            for row, prompt in enumerate(call)
            for copy, length in enumerate(prompt["lengths"])
        ]
        return sum(len(completion.ids) for group in engine.generate(requests, sampling) for completion in group)

    return generate


def measure(side: str, folder: Path) -> dict[str, float]:
    work = GenerationWork(**json.loads((folder / "work.json").read_text(encoding="utf-8")))
    torch.manual_seed(work.seed)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    generate = (as_trl if side == "trl" else as_tuneline)(model, work)
    generate(work.calls[0][:1])
    memory_before = resident_memory()
    forget_peak_memory()
    waited, worked, begun = seconds_waited(), time.process_time(), time.perf_counter()
    num_tokens = sum(generate(call) for call in work.calls[1:])
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "processor_seconds": time.process_time() - worked,
        "tokens": num_tokens,
        "waited": (seconds_waited() - waited) / seconds,
        "peak_memory": peak_memory(),
        "memory_before": memory_before,
        "num_threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    measured = measure(sys.argv[1], Path(os.environ[FOLDER]))
    Path(os.environ[RESULT]).write_text(json.dumps(measured), encoding="utf-8")
