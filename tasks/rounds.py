"""The record of a loop of rounds: what each collected, the data file it made, and what the line was worth after it.

Everything of a loop lies in data/rounds/NAME: `rounds.json`, the record; `round-001.jsonl`, all preferences that were
collected up to that round, which the round's prepare reads; `round-001.ties.jsonl`, the ties; and the `.dvc` files by
which DVC keeps both. A file of a round is whole or not there, so that a loop that was killed goes on behind the last
one. Table and plot for people lie in reports/rounds/NAME.
"""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stages.schema import PipelineConfig
from stages.storage import write_whole
from tasks.collection import COLLECTED
from tasks.graph import differences
from tasks.summary import read_metrics
from tuneline.collection.export import preference_data, ties_file, write_rows
from tuneline.collection.labelling import Label, agreement_with_scores
from tuneline.collection.pairs import read_pairs
from tuneline.collection.store import LabelStore
from tuneline.errors import StageError

FOLDER = Path("data/rounds")
REPORTS = Path("reports/rounds")
# What the loop's results do not depend on, or what may change between rounds.
_MAY_CHANGE = ("files", "gates", "promotion", "costs", "evaluate")
_MAY_CHANGE_OF_COLLECT = ("round", "labels", "judge", "shared_share", "min_labels", "batch_size")


@dataclass(frozen=True)
class Round:
    """One round that came to its end; number 0 is the line before anything was collected."""

    number: int
    at: str
    """UTC, ISO 8601."""
    policy: str
    """The stage whose policy is asked by the next round."""
    labels: str = ""
    """Who labelled; empty for number 0."""
    pairs: int = 0
    preferences: int = 0
    """Of this round."""
    ties: int = 0
    collected: int = 0
    """Preferences of all rounds so far."""
    sha256: str = ""
    """Of the round's data file."""
    metrics: dict[str, float] = field(default_factory=dict)


class Rounds:
    """The loop of a line; all of it is read from disk, and nothing else is remembered.

    Raises:
        StageError: rounds of this name were begun with other settings.
    """

    def __init__(self, root: Path, config: PipelineConfig):
        self.root, self.config = root, config
        self.folder = root / FOLDER / config.name
        self._record = self.folder / "rounds.json"
        known = json.loads(self._record.read_text(encoding="utf-8")) if self._record.is_file() else {}
        self._settings = _lasting(config)
        self.done = {one["number"]: Round(**one) for one in known.get("rounds", [])}
        changed = list(differences("", known.get("settings", self._settings), self._settings))
        if changed:
            raise StageError(
                f"rounds of {config.name} were begun with other settings ({'; '.join(changed)[1:]}). Go on with "
                f"those, give the line another name (--set name=...), or move {self.folder.relative_to(root)} away "
                "to begin anew."
            )

    def data_file(self, number: int) -> Path:
        """Relative to the checkout."""
        return FOLDER / self.config.name / f"round-{number:03d}.jsonl"

    def overrides(self, number: int) -> list[str]:
        """What the line's config is with the data of a round; nothing for number 0."""
        return [f"prepare.collected={self.data_file(number)}"] if number else []

    def has_data(self, number: int) -> bool:
        return (self.root / self.data_file(number)).is_file()

    def is_done(self, number: int) -> bool:
        """Whether the round came to its end, with the data file that is there now."""
        if number not in self.done:
            return False
        return number == 0 or (self.has_data(number) and self.done[number].sha256 == self._digest(number))

    def keep_data(self, number: int, store: LabelStore) -> None:
        """Write the data file of a round: all preferences of the rounds up to it; DVC keeps its bytes.

        Raises:
            StageError: nothing was preferred to anything so far, or DVC failed.
        """
        exported = preference_data(store, rounds=range(1, number + 1))
        if not exported.preferences:
            raise StageError(
                f"round {number}: {len(exported.ties)} ties and {exported.num_skipped} skipped pairs, and no "
                "preference to learn from. Raise collect.num_prompts, num_completions or temperature, or label more."
            )
        path = self.root / self.data_file(number)
        write_rows(ties_file(path), exported.ties)
        write_rows(path, exported.preferences)
        self.add_to_dvc(number)

    def add_to_dvc(self, number: int) -> None:
        """By its content; nothing happens where DVC has the file already.

        Raises:
            StageError: DVC failed.
        """
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "add", "--quiet"]
        file = self.data_file(number)
        command += [str(one) for one in (file, ties_file(file)) if (self.root / one).is_file()]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StageError(f"DVC cannot keep {self.data_file(number)}: {done.stderr.strip()[-1000:]}")

    def finish(self, number: int, store: LabelStore, who: str) -> Round:
        """Write a round that came to its end into the record, the table and the plot."""
        config = self.config
        known: dict[str, Any] = {}
        metrics = _line_metrics(read_metrics(self.root, "evaluate"), config)
        if number:
            of_round = preference_data(store, rounds=[number])
            known |= {"labels": who, "pairs": store.progress(number).pairs}
            known |= {"preferences": len(of_round.preferences), "ties": len(of_round.ties)}
            known |= {"collected": len((self.root / self.data_file(number)).read_bytes().splitlines())}
            known |= {"sha256": self._digest(number)}
            metrics |= self._fresh_accuracy(number, store)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = Round(number, now, config.collected_policy, metrics=metrics, **known)
        self.done[number] = made
        rounds = [asdict(self.done[n]) for n in sorted(self.done)]
        text = json.dumps({"settings": self._settings, "rounds": rounds}, indent=1, ensure_ascii=False)
        write_whole(self._record, text + "\n")
        self.write_report()
        return made

    def write_report(self) -> Path:
        """`rounds.csv`, `rounds.md` and `rounds.svg` in the folder that is returned."""
        folder = self.root / REPORTS / self.config.name
        folder.mkdir(parents=True, exist_ok=True)
        header, rows = self.table()
        with (folder / "rounds.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        lines = [header, ["---"] * len(header), *rows]
        (folder / "rounds.md").write_text("".join(f"| {' | '.join(row)} |\n" for row in lines), encoding="utf-8")
        _plot(folder / "rounds.svg", [self.done[n] for n in sorted(self.done)])
        return folder

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: what was labelled and what the line was worth, round by round."""
        rounds = [self.done[n] for n in sorted(self.done)]
        names = list(dict.fromkeys(name for one in rounds for name in one.metrics if not name.endswith(_INTERVAL)))
        header = ["round", "labels by", "pairs", "preferences", "ties", "all preferences", *names]
        counts = ("pairs", "preferences", "ties", "collected")
        rows = [
            [
                str(one.number),
                one.labels or "-",
                *(str(getattr(one, name)) for name in counts),
                *(_shown(one.metrics, name) for name in names),
            ]
            for one in rounds
        ]
        return header, rows

    def _digest(self, number: int) -> str:
        return hashlib.sha256((self.root / self.data_file(number)).read_bytes()).hexdigest()

    def _fresh_accuracy(self, number: int, store: LabelStore) -> dict[str, float]:
        """How the reward model of the round before ranks what this one labelled; empty where the pairs have gone."""
        file = self.root / COLLECTED / "pairs.jsonl"
        pairs = [pair for pair in read_pairs(file) if pair.round == number] if file.is_file() else []
        ids = {pair.id for pair in pairs}
        asked = (one for one in store.labels() if one.pair in ids and one.choice != "skip")
        agreed = agreement_with_scores(pairs, [Label(one.pair, one.choice, one.annotator, one.how) for one in asked])  # type: ignore[arg-type]
        return {} if agreed is None else {"reward model on fresh pairs": agreed}


_INTERVAL = ("_low", "_high")


def _lasting(config: PipelineConfig) -> dict[str, Any]:
    """The settings that may not change between the rounds of one loop."""
    settings = config.model_dump(mode="json", exclude=set(_MAY_CHANGE))
    settings["prepare"].pop("collected")
    for section in settings.values():
        if isinstance(section, dict):
            section.pop("launch", None)
    for name in _MAY_CHANGE_OF_COLLECT:
        (settings["collect"] or {}).pop(name, None)
    return settings


def _line_metrics(metrics: Mapping[str, float], config: PipelineConfig) -> dict[str, float]:
    """Of the evaluation, by the names in the table, with intervals where there are some."""
    policy = config.collected_policy
    wanted = {
        f"{policy} accuracy": f"{policy}/accuracy",
        f"{policy} reward": f"{policy}/reward",
        f"{policy} KL": f"{policy}/kl",
        "reward model accuracy": "reward_model/pairwise_accuracy",
    }
    return {
        f"{shown}{end}": metrics[f"{name}{end}"]
        for shown, name in wanted.items()
        for end in ("", *_INTERVAL)
        if f"{name}{end}" in metrics
    }


def _shown(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "-"
    low, high = (metrics.get(f"{name}{end}") for end in _INTERVAL)
    interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    return f"{metrics[name]:.3f}{interval}"


def _plot(path: Path, rounds: Iterable[Round]) -> None:
    """Shares over rounds on the left, preferences on the right; the same bytes for the same numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    rounds = list(rounds)
    with plt.rc_context({"svg.hashsalt": "tuneline", "svg.fonttype": "none", "font.size": 9}):
        figure, (shares, labels) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
        names = [name for one in rounds for name in one.metrics if name.endswith(("accuracy", "fresh pairs"))]
        for name in dict.fromkeys(names):
            points = [(one.number, one.metrics[name], one.metrics) for one in rounds if name in one.metrics]
            xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
            below = [y - of.get(f"{name}_low", y) for _, y, of in points]
            above = [of.get(f"{name}_high", y) - y for _, y, of in points]
            shares.errorbar(xs, ys, yerr=[below, above], marker="o", capsize=3, label=name)
        shares.set(xlabel="round", title="share, with 95 % intervals", ylim=(-0.02, 1.02))
        if names:
            shares.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        labels.bar(
            [one.number for one in rounds], [one.preferences for one in rounds], color="#4878a8", label="preferences"
        )
        bottoms = [one.preferences for one in rounds]
        labels.bar(
            [one.number for one in rounds], [one.ties for one in rounds], bottom=bottoms, color="#b8c4d0", label="ties"
        )
        labels.set(xlabel="round", title="pairs labelled")
        labels.margins(y=0.15)
        labels.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        for axis in (shares, labels):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)
