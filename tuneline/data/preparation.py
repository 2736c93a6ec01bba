"""From the rows of sources to what the line trains and evaluates on: unique rows, split, without overlap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from tuneline.data.readers import BadRow, SourceRow, bad_rows_error
from tuneline.data.splits import drop_duplicates, hold_out, prompt_key, without_answers_to
from tuneline.data.validation import Row, Validator, demonstration, preference, question
from tuneline.errors import DataError


@dataclass
class Counts:
    """What became of the rows of a source, at every step."""

    read: int = 0
    skipped: int = 0  # bad rows
    identical_sides: int = 0  # pairs whose two sides are the same
    duplicates: int = 0
    overlapping: int = 0  # rows that answer a held-out prompt
    train: int = 0
    eval: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class Split:
    """Rows to train on and rows held out, of the same columns."""

    train: list[Row]
    eval: list[Row]


@dataclass
class Prepared:
    """All rows of a line, and the account of them."""

    demonstrations: Split
    preferences: Split
    test: list[Row]
    counts: dict[str, Counts]
    bad: list[BadRow] = field(default_factory=list)


def prepare_rows(
    demonstrations: Iterable[SourceRow | BadRow] | None,
    preferences: Iterable[SourceRow | BadRow],
    test: Iterable[SourceRow | BadRow] | None,
    eval_fraction: float,
    on_bad_rows: str = "error",
) -> Prepared:
    """Check, deduplicate and split the rows of the sources.

    No row to train on answers a held-out prompt, of whichever source.

    Args:
        demonstrations: None takes the chosen answers of the preferences.
        test: None takes the held-out prompts of the preferences.
        on_bad_rows: `error`, or `skip`, which leaves them out and hands them back.

    Raises:
        DataError: there are bad rows and they are not to be skipped; or nothing is left to train on, or to hold out.
    """
    counts = {"preferences": Counts(), "demonstrations": Counts(), "test": Counts()}
    bad: list[BadRow] = []
    pairs = _checked(preferences, Validator(preference), counts["preferences"], bad)
    different = [row for row in pairs if row["chosen"] != row["rejected"]]
    counts["preferences"].identical_sides = len(pairs) - len(different)
    pairs = _unique(different, counts["preferences"])
    if demonstrations is None:
        shown = [_chosen_alone(row) for row in pairs]
        counts["demonstrations"].read = len(shown)
    else:
        shown = _checked(demonstrations, Validator(demonstration), counts["demonstrations"], bad)
    shown = _unique(shown, counts["demonstrations"])
    asked = [] if test is None else _checked(test, Validator(question), counts["test"], bad)
    asked = _one_a_prompt(asked, counts["test"])
    if bad and on_bad_rows == "error":
        remedy = "Mend or remove them, or leave them out with `prepare.on_bad_rows: skip`."
        raise bad_rows_error(bad, remedy)

    held_out = {prompt_key(row) for row in asked}
    sources = {"preferences": pairs, "demonstrations": shown}
    splits: dict[str, Split] = {}
    for name, rows in sources.items():
        kept = without_answers_to(rows, held_out)
        counts[name].overlapping = len(rows) - len(kept)
        splits[name] = Split(*hold_out(kept, eval_fraction))
    held_out |= {prompt_key(row) for split in splits.values() for row in split.eval}
    for name, split in splits.items():
        kept = without_answers_to(split.train, held_out)
        counts[name].overlapping += len(split.train) - len(kept)
        split.train = kept
        counts[name].train, counts[name].eval = len(split.train), len(split.eval)
    if test is None:
        counts["test"].read = len(splits["preferences"].eval)
        questions = [{name: row[name] for name in row if name != "margin"} for row in splits["preferences"].eval]
        asked = _one_a_prompt(questions, counts["test"])
    counts["test"].eval = len(asked)
    _check_filled(splits, asked, counts)
    return Prepared(splits["demonstrations"], splits["preferences"], asked, counts, bad)


def _checked(rows: Iterable[SourceRow | BadRow], check: Validator, counts: Counts, bad: list[BadRow]) -> list[Row]:
    good: list[Row] = []
    for row in rows:
        counts.read += 1
        checked = check(row) if isinstance(row, SourceRow) else row
        if isinstance(checked, BadRow):
            counts.skipped += 1
            bad.append(checked)
        else:
            good.append(checked)
    return good


def _unique(rows: list[Row], counts: Counts) -> list[Row]:
    unique = drop_duplicates(rows)
    counts.duplicates = len(rows) - len(unique)
    return unique


def _one_a_prompt(rows: list[Row], counts: Counts) -> list[Row]:
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(prompt_key(row), row)
    counts.duplicates = len(rows) - len(first)
    return list(first.values())


def _chosen_alone(row: Row) -> Row:
    further: Row = {name: row[name] for name in ("task", "tools") if name in row}
    return {"prompt": row["prompt"], "completion": row["chosen"], **further}


def _check_filled(splits: dict[str, Split], asked: list[Row], counts: dict[str, Counts]) -> None:
    left = {"test": asked}
    for name, split in splits.items():
        left |= {f"{name}, to train on": split.train, f"{name}, to hold out": split.eval}
    for what, rows in left.items():
        if not rows:
            steps = counts[what.split(",")[0]].as_dict()
            account = ", ".join(f"{step}: {number:,}" for step, number in steps.items())
            raise DataError(
                f"No rows are left of the {what} ({account}). Give more rows with different prompts, another "
                "eval_fraction, or a test set that does not repeat them."
            )
