"""Results item by item, so that two evaluations of the same held-out items can be compared pair by pair.

`files/items.jsonl` has a line for each policy and item; `files/held_out.json` says which items they were and how they
were asked. Two evaluations may be compared where the digests in it agree.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who reads the files need not wait for torch
    from tuneline.evaluation.measures import Answers
    from tuneline.evaluation.prompts import Prompts

ITEMS_FILE, HELD_OUT_FILE = "items.jsonl", "held_out.json"
PROTOCOL = ("temperature", "max_new_tokens", "num_completions", "verifier")  # settings that change what is measured


def write_items(files: Path, prompts: Prompts, answers: Mapping[str, Answers], settings: Mapping[str, Any]) -> None:
    """Write both files; the same answers give the same bytes."""
    keys = item_keys(prompts)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(keys, prompts, answers))
    (files / ITEMS_FILE).write_text("".join(lines), encoding="utf-8")
    asked = {name: settings.get(name) for name in PROTOCOL}
    held_out = {"digest": held_out_digest(keys, asked), "num_items": len(keys), "asked": asked}
    (files / HELD_OUT_FILE).write_text(json.dumps(held_out, indent=1) + "\n", encoding="utf-8")


def item_keys(prompts: Prompts) -> list[str]:
    """A hash of each item's prompt, solution and task; one that stands there twice has a number of its own."""
    seen: Counter[str] = Counter()
    keys = []
    for content in zip(prompts.values, prompts.solutions, prompts.tasks, strict=True):
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        seen[key] += 1
        keys.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return keys


def held_out_digest(keys: Sequence[str], asked: Mapping[str, Any]) -> str:
    """One hash of the items, in any order, and of how they were asked."""
    text = json.dumps([sorted(keys), dict(asked)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _rows(keys: Sequence[str], prompts: Prompts, answers: Mapping[str, Answers]) -> Iterator[dict[str, Any]]:
    for policy, of_one in answers.items():
        for i, key in enumerate(keys):
            outcomes = of_one.all_correct[i] if of_one.all_correct else [of_one.correct[i]]
            known = [float(outcome) for outcome in outcomes if outcome is not None]
            yield {
                "item": key,
                "policy": policy,
                "task": prompts.tasks[i],
                "accuracy": _rounded(math.fsum(known) / len(known)) if known else None,  # mean over the item's samples
                "num_samples": len(outcomes),
                "reward": None if of_one.rewards is None else _rounded(of_one.rewards[i]),
                "kl": None if of_one.divergences is None else _rounded(of_one.divergences.exact[i]),
                "num_tokens": of_one.completions[i].num_tokens,
                "finished": of_one.completions[i].finished,
            }


def _rounded(value: float) -> float | None:
    """Eight significant digits: fewer than those in which summation order shows."""
    return None if math.isnan(value) else float(f"{value:.8g}")
