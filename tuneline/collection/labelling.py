"""Labels that need no person: from scores of the two completions, or from a judge that sees both."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tuneline.collection.pairs import Pair
from tuneline.data.formats import as_reply
from tuneline.errors import DataError
from tuneline.judges import BasePairwiseJudge
from tuneline.rewards import RewardFunctions

Choice = Literal["a", "b", "tie"]


@dataclass(frozen=True)
class Label:
    """What a verifier, reward model or judge prefers of a pair."""

    pair: str
    choice: Choice
    annotator: str
    how: str


def score_completions(
    scorer: RewardFunctions, rows: Sequence[dict[str, Any]], groups: Sequence[Sequence[tuple[str, list[int]]]]
) -> list[list[float | None]]:
    """(prompts, completions) what one reward function or reward model gives each completion; None where it has no
    answer.

    Args:
        rows: one a prompt, with `prompt` and the columns that the function reads; all have the same columns.
        groups: text and token ids of the completions of each prompt.
    """
    flat = [(row, text, ids) for row, group in zip(rows, groups, strict=True) for text, ids in group]
    names = [name for name in (rows[0] if rows else {}) if name != "prompt"]
    scores = scorer.start(
        prompts=[row["prompt"] for row, _, _ in flat],
        completions=[as_reply(row["prompt"], text) for row, text, _ in flat],
        completion_ids=[ids for _, _, ids in flat],
        columns={name: [row.get(name) for row, _, _ in flat] for name in names},
    ).result()
    values = iter(scores.values[:, 0].tolist())
    return [[None if math.isnan(value := next(values)) else value for _ in group] for group in groups]


def labels_from_scores(pairs: Sequence[Pair], *, annotator: str, how: str, margin: float = 0.0) -> list[Label]:
    """The higher score is preferred; scores at most `margin` apart are a tie.

    Pairs without scores have no label.
    """
    labels = []
    for pair in pairs:
        if pair.scores is None:
            continue
        difference = pair.scores[0] - pair.scores[1]
        choice: Choice = "tie" if abs(difference) <= margin else "a" if difference > 0 else "b"
        labels.append(Label(pair.id, choice, annotator, how))
    return labels


def labels_from_judge(judge: BasePairwiseJudge, pairs: Sequence[Pair], *, annotator: str) -> list[Label]:
    """What the judge prefers, each pair shown to it in an order that comes from the texts; where it fails there is no
    label."""
    prompts = [pair.prompt for pair in pairs]
    verdicts = judge.judge(prompts, [[as_reply(p.prompt, p.a), as_reply(p.prompt, p.b)] for p in pairs])
    choices: dict[int, Choice] = {0: "a", 1: "b"}
    return [
        Label(pair.id, choices[verdict], annotator, "judge")
        for pair, verdict in zip(pairs, verdicts, strict=True)
        if verdict in choices
    ]


def agreement_with_scores(pairs: Sequence[Pair], labels: Sequence[Label]) -> float | None:
    """Share of preferences in which the line's reward model, as it was when the pairs were made, scores the preferred
    one higher; equal scores count half. None without any."""
    by_id = {pair.id: pair.reward_scores for pair in pairs}
    hits = []
    for label in labels:
        scores = by_id.get(label.pair)
        if label.choice == "tie" or scores is None:
            continue
        difference = scores[0] - scores[1] if label.choice == "a" else scores[1] - scores[0]
        hits.append(0.5 if difference == 0 else float(difference > 0))
    return sum(hits) / len(hits) if hits else None


def write_labels(path: Path, labels: Sequence[Label]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for label in labels:
            file.write(json.dumps(asdict(label), ensure_ascii=False) + "\n")


def read_labels(path: Path) -> list[Label]:
    """What `write_labels` wrote.

    Raises:
        DataError: no such file, or a line that is no label.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; run the stage collect, which labels the pairs.")
    try:
        return [Label(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} holds a line that is no label ({error}); run the stage collect again.") from None
