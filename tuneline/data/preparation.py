"""From the rows of sources to what the line trains and evaluates on: unique rows, split, without overlap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from tuneline.data.readers import BadRow, SourceRow, bad_rows_error
from tuneline.data.splits import drop_duplicates, hold_out, prompt_key, without_answers_to
from tuneline.data.validation import Row, Validator, demonstration, preference, question, rewarded_question
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
    preferences: Split  # empty where there are none
    prompts: list[Row]  # what is answered in training with rewards
    test: list[Row]
    counts: dict[str, Counts]
    bad: list[BadRow] = field(default_factory=list)
    collected: list[Row] = field(default_factory=list)  # preferences of the line's own answers, to train on too


def prepare_rows(
    demonstrations: Iterable[SourceRow | BadRow] | None,
    preferences: Iterable[SourceRow | BadRow] | None,
    test: Iterable[SourceRow | BadRow] | None,
    eval_fraction: float,
    on_bad_rows: str = "error",
    prompts: Iterable[SourceRow | BadRow] | None = None,
    collected: Iterable[SourceRow | BadRow] | None = None,
) -> Prepared:
    """Check, deduplicate and split the rows of the sources.

    No row to train on answers a held-out prompt, of whichever source, and no prompt to train on is one.

    Args:
        demonstrations: None takes the chosen answers of the preferences.
        preferences: None leaves them out.
        test: None takes the held-out prompts of the preferences, or of the demonstrations where there are none.
        on_bad_rows: `error`, or `skip`, which leaves them out and hands them back.
        prompts: None takes those of the demonstrations to train on; a text that is no answer to anything has none.
        collected: preferences to train on beside the others. None of them is held out, so that what is measured on
            the held-out ones can be compared from round to round.

    Raises:
        DataError: there are bad rows and they are not to be skipped; or nothing is left to train on, or to hold out.
    """
    assert demonstrations is not None or preferences is not None
    names = (*(["preferences"] if preferences is not None else []), "demonstrations", "prompts", "test")
    counts = {name: Counts() for name in names}
    bad: list[BadRow] = []
    sources: dict[str, list[Row]] = {}
    if preferences is not None:
        sources["preferences"] = _pairs(preferences, counts["preferences"], bad)
    if demonstrations is None:
        shown = [_chosen_alone(row) for row in sources["preferences"]]
        counts["demonstrations"].read = len(shown)
    else:
        shown = _checked(demonstrations, Validator(demonstration), counts["demonstrations"], bad)
    sources["demonstrations"] = _unique(shown, counts["demonstrations"])
    explored = _checked(prompts or [], Validator(rewarded_question), counts["prompts"], bad)
    asked = [] if test is None else _checked(test, Validator(question), counts["test"], bad)
    asked = _one_a_prompt(asked, counts["test"])
    if collected is not None:
        counts["collected"] = Counts()
    fresh = [] if collected is None else _pairs(collected, counts["collected"], bad)
    if bad and on_bad_rows == "error":
        remedy = "Mend or remove them, or leave them out with `prepare.on_bad_rows: skip`."
        raise bad_rows_error(bad, remedy)

    held_out = {prompt_key(row) for row in asked}
    splits = _split(sources, held_out, eval_fraction, counts)
    held_out |= {prompt_key(row) for split in splits.values() for row in split.eval}
    for name, split in splits.items():
        split.train = _apart(split.train, held_out, counts[name])
        counts[name].train, counts[name].eval = len(split.train), len(split.eval)
    if prompts is None:
        explored = list(_questions(splits["demonstrations"].train))
        counts["prompts"].read = len(explored)
    if fresh:
        fresh = _apart(fresh, held_out, counts["collected"])
        counts["collected"].train = len(fresh)
    explored = _apart(_one_a_prompt(explored, counts["prompts"]), held_out, counts["prompts"])
    counts["prompts"].train = len(explored)
    if test is None:
        questions = list(_questions((splits.get("preferences") or splits["demonstrations"]).eval))
        counts["test"].read = len(questions)
        asked = _one_a_prompt(questions, counts["test"])
    counts["test"].eval = len(asked)
    _check_filled(splits, asked, explored if prompts is not None else None, counts)
    pairs = splits.get("preferences", Split([], []))
    return Prepared(splits["demonstrations"], pairs, explored, asked, counts, bad, fresh)


def _pairs(rows: Iterable[SourceRow | BadRow], counts: Counts, bad: list[BadRow]) -> list[Row]:
    pairs = _checked(rows, Validator(preference), counts, bad)
    different = [row for row in pairs if row["chosen"] != row["rejected"]]
    counts.identical_sides = len(pairs) - len(different)
    return _unique(different, counts)


def _split(
    sources: dict[str, list[Row]], held_out: set[str], eval_fraction: float, counts: dict[str, Counts]
) -> dict[str, Split]:
    return {
        name: Split(*hold_out(_apart(rows, held_out, counts[name]), eval_fraction)) for name, rows in sources.items()
    }


def _apart(rows: list[Row], held_out: set[str], counts: Counts) -> list[Row]:
    """The rows that answer, or ask, nothing that is held out."""
    kept = without_answers_to(rows, held_out)
    counts.overlapping += len(rows) - len(kept)
    return kept


def _questions(rows: Iterable[Row]) -> Iterable[Row]:
    """What rows with an answer ask; text alone asks nothing."""
    for row in rows:
        if "messages" in row:
            last = max(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
            if last:
                yield {"prompt": row["messages"][:last], **_further(row)}
        elif "prompt" in row:
            yield {name: row[name] for name in row if name not in ("completion", "margin")}


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
    return {"prompt": row["prompt"], "completion": row["chosen"], **_further(row)}


def _further(row: Row) -> Row:
    return {name: row[name] for name in ("task", "solution", "tools") if name in row}


def _check_filled(
    splits: dict[str, Split], asked: list[Row], explored: list[Row] | None, counts: dict[str, Counts]
) -> None:
    left = {"test": asked} if explored is None else {"test": asked, "prompts, to train on": explored}
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
