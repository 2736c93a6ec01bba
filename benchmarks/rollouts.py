"""Completions of given lengths on both sides: drawn by each side's own generation, or given outright.

Lengths are forced around the generation, not in it: each side does for every token what it does anyway. An EOS is put
where a completion ends, and one drawn before is replaced, so that all lengths are exactly those asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from tuneline.rollout.protocol import Completion, Request, RolloutEngine, Sampling


class Script:
    """The completions of each prompt, dealt out in turn.

    Args:
        rows: with `prompt`, `prompt_ids` and `completions`, the latter lists of token ids that end with an EOS.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], eos_token_id: int):
        self.eos_token_id = eos_token_id
        self.rows = {row["prompt"]: row for row in rows}
        self._by_ids = {tuple(row["prompt_ids"]): cycle(row["completions"]) for row in rows}

    def next_completion(self, prompt_ids: Sequence[int]) -> list[int]:
        return next(self._by_ids[tuple(prompt_ids)])

    def rollout_func(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """What both trainers take as `rollout_func`."""
        prompt_ids = [self.rows[prompt]["prompt_ids"] for prompt in prompts]
        completions = [self.next_completion(ids) for ids in prompt_ids]
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}

    def ended(self, ids: list[int]) -> list[int]:
        """The same number of tokens, with an EOS as the last and as no other."""
        other = self.eos_token_id + 1
        return [other if token == self.eos_token_id else token for token in ids[:-1]] + [self.eos_token_id]


class EngineOfLengths:
    """A rollout engine whose completions are as long as the script's."""

    def __init__(self, engine: RolloutEngine, script: Script):
        self.engine, self.script = engine, script

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        single = [
            Request(request.prompt_ids, [seed], len(self.script.next_completion(request.prompt_ids)))
            for request in requests
            for seed in request.seeds
        ]
        drawn = iter(self.engine.generate(single, replace(sampling, stop_token_ids=())))
        return [[self._ended(next(drawn)[0]) for _ in request.seeds] for request in requests]

    def _ended(self, completion: Completion) -> Completion:
        return replace(completion, ids=self.script.ended(completion.ids), is_finished=True)

    def sync_weights(self, model: nn.Module) -> None:
        self.engine.sync_weights(model)

    def close(self) -> None:
        self.engine.close()


def generate_of_lengths(generate: Callable[..., Any], script: Script) -> Callable[..., Any]:
    """`model.generate` of transformers, whose rows end where the script's do; a row that ended is padded until all
    have, as it is after an EOS."""

    def generate_so(input_ids: Tensor, attention_mask: Tensor, generation_config: Any, **options: Any) -> Any:
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        lengths = [len(script.next_completion(prompt)) for prompt in prompts]
        config = copy.deepcopy(generation_config)
        config.eos_token_id = [2**31 - 1]  # no token has this id: rows are padded once they ended, and none ends early
        width = input_ids.shape[1]
        output = generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([RowEnds(width + torch.tensor(lengths))]),
            **options,
        )
        sequences = output if isinstance(output, Tensor) else output.sequences
        for row, length in zip(sequences, lengths, strict=True):
            row[width : width + length] = torch.tensor(script.ended(row[width : width + length].tolist()))
        return output

    return generate_so


class RowEnds(StoppingCriteria):
    """Rows end at ends of their own: `ends` (sequences,), counted from the start of the padded row."""

    def __init__(self, ends: Tensor):
        self.ends = ends

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids.shape[1] >= self.ends
