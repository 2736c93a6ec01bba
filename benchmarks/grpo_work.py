"""The work of the GRPO benchmark: prompts of gsm8k, and how long each of their completions gets.

A model with random weights would not stop by itself, so completions are as long as worked solutions of gsm8k, drawn at
random, the same for both sides. Where only the update is measured they are those very solutions.
"""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.workload import Work, count_work, make_model, make_tokenizer
from tuneline.errors import DataError

WARM_UP_LENGTH = 8  # tokens; enough for every code path to be taken once


@dataclass(frozen=True)
class GRPOWorkload:
    """What is asked for."""

    data: str
    steps: int  # measured optimizer steps, after one that warms up
    prompts: int  # a step
    num_generations: int  # completions a prompt
    batch_size: int  # completions a micro-batch
    max_completion_length: int
    learning_rate: float
    gradient_checkpointing: bool
    seed: int

    @property
    def completions_a_step(self) -> int:
        return self.prompts * self.num_generations


@dataclass(frozen=True)
class GRPOWork:
    """What the measured steps amount to, counted from the tokens, the same for both sides."""

    completions: int
    completion_tokens: int
    mean_length: float
    longest: int
    update: Work  # forward and backward passes over prompts and completions

    @property
    def flops_of_update(self) -> float:
        return self.update.flops

    @property
    def flops_of_step(self) -> float:
        """Writing a completion takes a forward pass over each token at least, a third of an update."""
        return self.update.flops * 4 / 3


def prepare(workload: GRPOWorkload, folder: Path) -> GRPOWork:
    """Write tokenizer, model, workload and rows to `folder`, and count the work of the measured rows.

    Raises:
        DataError: the data file is absent, is no gsm8k, or has too few rows.
    """
    from transformers import AutoTokenizer

    questions = read_questions(Path(workload.data))
    num_prompts = workload.prompts * (workload.steps + 1)
    if len(questions) < num_prompts:
        raise DataError(
            f"{workload.data} has {len(questions)} different questions; {num_prompts} are needed ({workload.steps} "
            f"steps and one that warms up, of {workload.prompts} prompts): lower --steps or --prompts."
        )
    trained = make_tokenizer([text for pair in questions.items() for text in pair])
    model = make_model("grpo", workload.seed, trained)
    model.save_pretrained(folder / "model")
    trained.save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")  # what both sides load
    rows = make_rows(workload, questions, tokenizer)
    (folder / "workload.json").write_text(json.dumps(asdict(workload)), encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    measured = rows[workload.prompts :]
    sequences = [
        (len(row["prompt_ids"]), *(len(row["prompt_ids"]) + len(ids) for ids in row["completions"])) for row in measured
    ]
    lengths = [len(ids) for row in measured for ids in row["completions"]]
    return GRPOWork(
        completions=len(lengths),
        completion_tokens=sum(lengths),
        mean_length=sum(lengths) / len(lengths),
        longest=max(lengths),
        update=count_work("grpo", sequences, workload.prompts, model.config),
    )


def read_questions(path: Path) -> dict[str, str]:
    """Answers by question, from JSONL (.gz or not)."""
    if not path.is_file():
        raise DataError(
            f"the data file {path} is absent; name another with --data: JSONL (.gz or not) with question and answer."
        )
    answers = {}
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                answers[row["question"]] = row["answer"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, row {number}: not an object with question and answer ({error!r}).") from None
    return answers


def make_rows(workload: GRPOWorkload, questions: dict[str, str], tokenizer: Any) -> list[dict[str, Any]]:
    """Prompts with `num_generations` solutions each, of questions drawn at random; each ends with an EOS."""
    eos = tokenizer.eos_token_id
    solutions = [[*ids, eos] for ids in tokenizer(list(questions.values()))["input_ids"]]
    draws = random.Random(workload.seed)
    rows = []
    for number, question in enumerate(questions):
        if number == workload.prompts * (workload.steps + 1):
            break
        longest = WARM_UP_LENGTH if number < workload.prompts else workload.max_completion_length
        prompt = question + "\n"
        drawn = [draws.choice(solutions) for _ in range(workload.num_generations)]
        rows.append(
            {
                "prompt": prompt,
                "prompt_ids": tokenizer(prompt)["input_ids"],
                "completions": [ids if len(ids) <= longest else [*ids[: longest - 1], eos] for ids in drawn],
            }
        )
    return rows
