"""The work of the PPO benchmark: prompts of hh-rlhf, and how long each completion gets.

A model with random weights would not stop by itself. In whole steps completions are as long as answers of the data,
drawn at random; where only the update is measured they are texts of the data, all of one length, for TRL puts the score
of a shorter one beside its last token, on the padding. Both sides get the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.parts import PartWork
from benchmarks.workload import count_work, make_model, make_tokenizer, read_pairs
from tuneline.errors import DataError

PARTS = ("steps", "update")
WARM_UP_LENGTH = 8  # tokens; enough for every code path to be taken once


@dataclass(frozen=True)
class PPOWorkload:
    """What is asked for. A step is one rollout and what is learned from it."""

    data: str
    steps: int  # measured, after one that warms up
    episodes: int  # a step
    num_mini_batches: int  # a step; each makes one optimizer step in each epoch
    num_ppo_epochs: int
    rollout_batch_size: int  # episodes that TRL generates and scores at once
    max_prompt_length: int
    response_length: int
    learning_rate: float
    gradient_checkpointing: bool
    value_function: str  # of tuneline; TRL has a model
    seed: int

    @property
    def updates_a_step(self) -> int:
        return self.num_mini_batches * self.num_ppo_epochs


@dataclass(frozen=True)
class PPOPart:
    """What the measured steps of a part amount to, counted from the tokens."""

    work: PartWork
    mean_prompt: float
    mean_length: float
    longest: int
    real_tokens: int  # prompts and completions
    padded_tokens: int  # the same, each step padded to its longest prompt and its longest completion


def prepare(workload: PPOWorkload, folder: Path) -> dict[str, PPOPart]:
    """Write tokenizer, models, workload and rows to `folder`, and count the work of the measured rows.

    Raises:
        DataError: the data file is absent, holds something else, or has too few prompts.
    """
    from transformers import AutoTokenizer

    pairs = read_pairs(Path(workload.data))
    trained = make_tokenizer([row["prompt"] + row[side] for row in pairs for side in ("chosen", "rejected")])
    # Policy and reward model are two models; the value model starts from the reward model, as is usual.
    for name, kind, seed in (("model", "ppo", workload.seed), ("reward_model", "reward", workload.seed + 1)):
        model = make_model(kind, seed, trained)
        model.save_pretrained(folder / name)
        trained.save_pretrained(folder / name)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")  # what both sides load
    rows = make_rows(workload, pairs, tokenizer)
    (folder / "workload.json").write_text(json.dumps(asdict(workload)), encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {part: count_part(workload, rows[workload.episodes :], part, model.config) for part in PARTS}


def make_rows(workload: PPOWorkload, pairs: list[dict[str, str]], tokenizer: Any) -> list[dict[str, Any]]:
    """Prompts with a completion for each part, those of the step that warms up first; each ends with an EOS."""
    prompts = list(dict.fromkeys(row["prompt"] for row in pairs))
    encoded = dict(zip(prompts, tokenizer(prompts)["input_ids"], strict=True))
    fitting = [prompt for prompt in prompts if len(encoded[prompt]) <= workload.max_prompt_length]
    num_measured = workload.steps * workload.episodes
    if len(fitting) < num_measured + workload.episodes:
        raise DataError(
            f"{workload.data} has {len(fitting)} different prompts of at most {workload.max_prompt_length} tokens; "
            f"{num_measured + workload.episodes} are needed ({workload.steps} steps and one that warms up, of "
            f"{workload.episodes} episodes): lower --steps or --episodes."
        )
    measured, others = fitting[:num_measured], fitting[num_measured:]
    warm_up = sorted(others, key=lambda prompt: len(encoded[prompt]))[: workload.episodes]
    draws = random.Random(workload.seed)
    answers = [row[side] for row in pairs for side in ("chosen", "rejected")]
    eos = tokenizer.eos_token_id
    lengths = [[*ids, eos] for ids in tokenizer(answers)["input_ids"]]
    rows = []
    for number, prompt in enumerate([*warm_up, *measured]):
        longest = WARM_UP_LENGTH if number < workload.episodes else workload.response_length
        longest = min(longest, workload.response_length)
        drawn = draws.choice(lengths)
        texts = _texts_of_length(longest - 1, prompt, answers, draws, tokenizer)
        completions = {"steps": [*drawn[: longest - 1], eos], "update": [*next(texts), eos]}
        rows.append({"prompt": prompt, "prompt_ids": encoded[prompt], "completions": completions})
    return rows


def _texts_of_length(
    num_tokens: int, prompt: str, answers: list[str], draws: random.Random, tokenizer: Any
) -> Iterator[list[int]]:
    """Tokens of answers, so many each, that are the tokens of their text after the prompt: a reward model that reads
    the text again reads the same."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    while True:
        text = draws.choice(answers)
        while len(ids := tokenizer(text)["input_ids"]) < num_tokens:
            text += draws.choice(answers)
        ids = ids[:num_tokens]
        if tokenizer(prompt + tokenizer.decode(ids))["input_ids"] == [*prompt_ids, *ids]:
            yield ids


def count_part(workload: PPOWorkload, rows: list[dict[str, Any]], part: str, config: Any) -> PPOPart:
    sizes = [(len(row["prompt_ids"]), len(row["completions"][part])) for row in rows]
    sequences = [(prompt, prompt + length) for prompt, length in sizes]
    # forward and backward passes, with a language model's head and with one number a position
    with_head, without = (count_work(kind, sequences, workload.episodes, config) for kind in ("ppo", "reward"))
    # Forward passes, a third each: the policy's that writes a completion and the reference's; the value model's and
    # the reward model's. Each epoch takes one forward and backward pass of policy and value model.
    num_head_passes = workload.num_ppo_epochs + (2 if part == "steps" else 1) / 3
    flops = with_head.flops * num_head_passes + without.flops * (workload.num_ppo_epochs + 2 / 3)
    lengths = [length for _, length in sizes]
    padded = 0
    for start in range(0, len(sizes), workload.episodes):
        batch = sizes[start : start + workload.episodes]
        padded += len(batch) * (max(prompt for prompt, _ in batch) + max(length for _, length in batch))
    return PPOPart(
        work=PartWork(workload.steps, len(rows), sum(lengths), flops),
        mean_prompt=sum(prompt for prompt, _ in sizes) / len(sizes),
        mean_length=sum(lengths) / len(lengths),
        longest=max(lengths),
        real_tokens=with_head.real_tokens,
        padded_tokens=padded,
    )
