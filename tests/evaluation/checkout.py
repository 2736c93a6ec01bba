"""A checkout after a run, with what the stages left in it, its numbers and texts made up."""

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from stages.evaluate_files import write_results
from tasks.summary import RunSummary, StageSummary
from tuneline.evaluation.divergence import Divergences
from tuneline.evaluation.measures import Answers, Draws, ScoredPairs
from tuneline.evaluation.prompts import Prompts
from tuneline.evaluation.sampling import Completion

TASKS = ("addition", "sorting", "reversal", "counting")


def make_checkout(root: Path, hostile: str = "") -> RunSummary:
    """`hostile` stands wherever text comes from data or configs."""
    draw = random.Random(0)
    _write(root / "data/prepared/summary.json", _data_summary(draw, hostile))
    stages = [StageSummary("prepare", "cached", 0.0, {"preferences/train": 4200, "test/eval": 400})]
    for name in ("sft", "reward", "dpo", "ppo", "grpo"):
        _write_curve(root / "reports" / name / "curve.csv", draw)
        stages.append(StageSummary(name, "ran", draw.uniform(10, 90), {"eval/loss": draw.random(), "steps": 300}))
    metrics = _evaluate(root / "reports" / "evaluate", draw, hostile)
    stages.append(StageSummary("evaluate", "ran", 21.5, metrics))
    out = {"path": f"models/sft{hostile}", "md5": "0123456789abcdef0123456789abcdef.dir"}
    _write(root / "dvc.lock", {"schema": "2.0", "stages": {"sft": {"cmd": "x", "outs": [out]}}})
    (root / "requirements.lock").write_text("torch==2.13\n")
    started = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    config = {"name": f"quickstart{hostile}", "dpo": {"training": {"beta": 0.1}}}
    finished = started + timedelta(seconds=187)
    return RunSummary(f"quickstart{hostile}", config, tuple(stages), started, finished, "amber-fox", "0a1b2c")


def _data_summary(draw: random.Random, hostile: str) -> dict:
    counts = {"read": 5000, "skipped": 3, "duplicates": 12, "overlapping": 4, "train": 4700, "eval": 281}
    lengths = {}
    for name in ("sft/train", "sft/eval", "preference/train", "preference/eval", "test"):
        bins = [draw.randint(0, 400) for _ in range(24)]
        lengths[name] = {
            "rows": sum(bins),
            "tokens": 30 * sum(bins),
            "median": 31.0,
            "p95": 44.5,
            "max": 48,
            "max_length": 40,
            "cut_at_max_length": 7,
            "dropped_at_max_length": 0,
            "histogram": {"edges": list(range(0, 50, 2)), "counts": bins},
        }
    synthetic = {"num_rows": 5000, "tasks": [*TASKS, hostile], "noise": 0.3}
    sources = {
        "demonstrations": {"from": {"split": "train", "synthetic": synthetic}, "counts": counts},
        "preferences": {"from": {"path": f"pairs{hostile}.jsonl", "split": "train"}, "counts": counts},
        "test": {"from": "preferences", "counts": {"read": 400, "kept": 400}},
    }
    return {"data_hash": "ab" * 32, "sources": sources, "lengths": lengths}


def _write_curve(path: Path, draw: random.Random) -> None:
    path.parent.mkdir(parents=True)
    columns = {"sft": "mean_token_accuracy", "reward": "accuracy", "dpo": "rewards/accuracies"}
    accuracy = columns.get(path.parent.name, "reward")
    lines = [f"step,eval_loss,eval_{accuracy},train/learning_rate,train/loss,train/{accuracy}"]
    for step in range(10, 310, 10):
        loss = 0.2 + 2 / (1 + step / 40)
        held_out = f"{loss + 0.1:.4f},{1 - loss / 3:.4f}" if step % 100 == 0 else ","
        lines.append(f"{step},{held_out},0.001,{loss + draw.gauss(0, 0.04):.4f},{1 - loss / 3:.4f}")
    path.write_text("\n".join(lines) + "\n")


def _evaluate(report: Path, draw: random.Random, hostile: str) -> dict[str, float]:
    tasks = [f"{task}{hostile}" if task == "sorting" else task for task in TASKS]
    num_prompts = 240
    prompts = Prompts(
        {
            "prompt": [
                [{"role": "system", "content": "Answer."}, {"role": "user", "content": f"Sort {i} 3 2 1{hostile}"}]
                for i in range(num_prompts)
            ],
            "solution": [f"{2 * i}{hostile}" for i in range(num_prompts)],
            "task": [tasks[i % 4] for i in range(num_prompts)],
        }
    )
    answers = {}
    for name, share, shift in (("sft", 0.55, 0.0), ("dpo", 0.8, 1.2)):
        completions = [
            Completion([1] * draw.randint(2, 14), f"{2 * i}{hostile}", draw.random() < 0.97) for i in range(num_prompts)
        ]
        correct: list[bool | None] = [draw.random() < share for _ in range(num_prompts)]
        rewards = [draw.gauss(shift, 1) for _ in range(num_prompts)]
        kl = [abs(draw.gauss(1.5, 0.5)) for _ in range(num_prompts)]
        answers[name] = Answers(completions, correct, rewards, Divergences(kl, kl) if name == "dpo" else None)
    draws = Draws(
        [[one] * 4 for one in answers["sft"].completions],
        [[draw.random() < 0.55 for _ in range(4)] for _ in range(num_prompts)],
        [[draw.gauss(0, 1) for _ in range(4)] for _ in range(num_prompts)],
    )
    margins = [draw.gauss(1.3, 1) for _ in range(300)]
    rejected = [draw.gauss(0, 1) for _ in margins]
    pairs = ScoredPairs(
        [r + m for r, m in zip(rejected, margins, strict=True)],
        rejected,
        [draw.randint(3, 12) for _ in margins],
        [draw.randint(3, 12) for _ in margins],
        [tasks[i % 4] for i in range(300)],
    )
    settings = {
        "seed": 17,
        "temperature": 0.0,
        "max_new_tokens": 16,
        "num_side_by_side": 8,
        "best_of_n": [1, 2, 4],
        "baseline": "sft",
        "policies": list(answers),
    }
    notes = [f"3 prompts were left out{hostile}."]
    return write_results(report, prompts, answers, draws, pairs, settings, notes, {"num_prompts_too_long": 3})


def _write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
