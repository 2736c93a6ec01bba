"""Where labels are kept: one SQLite file, one transaction a label, on the disk before it is acknowledged.

Labels are never overwritten and never deleted: one that is taken back gets the time at which it was. Of a pair each
annotator has at most one label that stands. Several processes may use one file at once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tuneline.collection.pairs import Pair
from tuneline.errors import DataError

CHOICES = ("a", "b", "tie", "skip")
PERSON = "person"
LEASE_SECONDS = 1200.0
"""How long a pair that one annotator was given is kept for that annotator."""
_VERSION = "1"
_TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pairs (
    id TEXT PRIMARY KEY, position INTEGER NOT NULL, prompt TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL,
    policy TEXT NOT NULL, round INTEGER NOT NULL, columns TEXT NOT NULL, is_shared INTEGER NOT NULL, at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS labels (
    number INTEGER PRIMARY KEY AUTOINCREMENT, pair TEXT NOT NULL REFERENCES pairs(id), annotator TEXT NOT NULL,
    client TEXT NOT NULL, choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'tie', 'skip')), shown_left TEXT,
    how TEXT NOT NULL, seconds REAL, at TEXT NOT NULL, taken_back_at TEXT,
    UNIQUE (pair, annotator, client)
);
CREATE UNIQUE INDEX IF NOT EXISTS standing ON labels (pair, annotator) WHERE taken_back_at IS NULL;
CREATE TABLE IF NOT EXISTS leases (pair TEXT PRIMARY KEY, annotator TEXT NOT NULL, until REAL NOT NULL);
"""

Outcome = Literal["stored", "known", "other label stands"]


@dataclass(frozen=True)
class StoredLabel:
    """A label that stands."""

    pair: str
    annotator: str
    choice: str
    how: str
    at: str
    """UTC, ISO 8601."""
    shown_left: str | None
    """`a` or `b`, for a person."""
    seconds: float | None
    """How long the pair was looked at, as the browser measured."""


@dataclass(frozen=True)
class Progress:
    """Pairs of a store, or of one round of it."""

    pairs: int
    answered: int  # with a label that stands, skips included
    decided: int  # with a preference or a tie
    by_annotator: dict[str, int]  # labels that stand


class LabelStore:
    """The labels of a line; `close` it, or use it as a context.

    Args:
        path: the file; made, with its folder, where it is missing.
        shared_share: of the pairs, those shown to every annotator; the others go to one.
        clock: seconds, for how long a pair is kept for who was given it.

    Raises:
        DataError: a file that is no such store.
    """

    def __init__(self, path: Path, *, shared_share: float = 0.2, clock: Callable[[], float] = time.time):
        self.path, self.shared_share, self._clock = path, shared_share, clock
        self._lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._database.row_factory = sqlite3.Row
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute("PRAGMA foreign_keys=ON")
            self._database.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise DataError(f"{path} is no store of labels ({error}); name another file.") from None
        with self._transaction():
            for fact in (("version", _VERSION), ("salt", secrets.token_hex(8))):
                self._database.execute("INSERT OR IGNORE INTO about VALUES (?, ?)", fact)
        known = {row["name"]: row["value"] for row in self._all("SELECT * FROM about")}
        version, self._salt = known["version"], known["salt"]
        if version != _VERSION:
            self.close()
            raise DataError(f"{path} is a store of version {version}; this program reads {_VERSION}.")

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def add_pairs(self, pairs: Iterable[Pair]) -> int:
        """Take pairs in, after those that are there; the number of new ones. A pair that is known stays as it is."""
        num_new = 0
        with self._transaction():
            position = self._one("SELECT COALESCE(MAX(position), 0) FROM pairs")[0]
            for pair in pairs:
                position += 1
                prompt, columns = json.dumps(pair.prompt), json.dumps(pair.columns)
                is_shared = int(_share(pair.id) < self.shared_share)
                row = (pair.id, position, prompt, pair.a, pair.b, pair.policy, pair.round, columns, is_shared, _now())
                num_new += self._database.execute(
                    "INSERT OR IGNORE INTO pairs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row
                ).rowcount
        return num_new

    def add_label(
        self,
        pair: str,
        annotator: str,
        choice: str,
        *,
        how: str,
        client: str = "",
        shown_left: str | None = None,
        seconds: float | None = None,
    ) -> Outcome:
        """Keep a label; when this returns, it is on the disk.

        The same pair, annotator and client id again changes nothing. Where the annotator has another label on the pair
        that stands, that one stays.

        Args:
            client: names the act of labelling, so that it may be sent twice.

        Raises:
            DataError: there is no such pair, or the choice is none of `CHOICES`.
        """
        if choice not in CHOICES:
            raise DataError(f"the choice {choice!r} is none of {', '.join(CHOICES)}.")
        with self._transaction():
            if self._one("SELECT 1 FROM pairs WHERE id = ?", pair) is None:
                raise DataError(f"there is no pair {pair!r} in {self.path}.")
            if self._one(
                "SELECT 1 FROM labels WHERE pair = ? AND annotator = ? AND client = ?", pair, annotator, client
            ):
                return "known"
            if self._one(
                "SELECT 1 FROM labels WHERE pair = ? AND annotator = ? AND taken_back_at IS NULL", pair, annotator
            ):
                return "other label stands"
            self._database.execute(
                "INSERT INTO labels (pair, annotator, client, choice, shown_left, how, seconds, at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (pair, annotator, client, choice, shown_left, how, seconds, _now()),
            )
            self._database.execute("DELETE FROM leases WHERE pair = ?", (pair,))
        return "stored"

    def take_back(self, pair: str, annotator: str, client: str) -> bool:
        """Undo one act of labelling; False where it is not there or was undone before."""
        with self._transaction():
            changed = self._database.execute(
                "UPDATE labels SET taken_back_at = ? "
                "WHERE pair = ? AND annotator = ? AND client = ? AND taken_back_at IS NULL",
                (_now(), pair, annotator, client),
            )
        return changed.rowcount > 0

    def last_label(self, annotator: str) -> tuple[str, str] | None:
        """Pair and client id of the annotator's newest label that stands."""
        row = self._one(
            "SELECT pair, client FROM labels WHERE annotator = ? AND taken_back_at IS NULL ORDER BY number DESC",
            annotator,
        )
        return None if row is None else (row["pair"], row["client"])

    def pairs_for(self, annotator: str, limit: int = 1) -> list[Pair]:
        """What this annotator is shown next: pairs that everyone sees, and others that nobody has decided on.

        The others are kept for this annotator for `LEASE_SECONDS`, so that two annotators do not work on the same.
        """
        now = self._clock()
        with self._transaction():
            found = self._database.execute(f"{_OPEN} ORDER BY position LIMIT ?", (annotator, annotator, now, limit))
            rows = found.fetchall()
            self._database.executemany(
                "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)",
                [(row["id"], annotator, now + LEASE_SECONDS) for row in rows if not row["is_shared"]],
            )
        return [_as_pair(row) for row in rows]

    def num_left(self, annotator: str) -> int:
        """How many pairs this annotator may still be shown."""
        return int(self._one(f"SELECT COUNT(*) FROM ({_OPEN})", annotator, annotator, self._clock())[0])

    def pairs(self, rounds: Sequence[int] | None = None) -> list[Pair]:
        """In the order they came in; None takes those of all rounds."""
        rows = self._all("SELECT * FROM pairs ORDER BY position")
        return [_as_pair(row) for row in rows if rounds is None or row["round"] in rounds]

    def pair(self, identity: str) -> Pair | None:
        row = self._one("SELECT * FROM pairs WHERE id = ?", identity)
        return None if row is None else _as_pair(row)

    def labels(self, how: str | None = None) -> list[StoredLabel]:
        """Those that stand, in the order they came in."""
        rows = self._all("SELECT * FROM labels WHERE taken_back_at IS NULL ORDER BY number")
        fields = StoredLabel.__dataclass_fields__
        return [StoredLabel(**{name: row[name] for name in fields}) for row in rows if how in (None, row["how"])]

    def progress(self, round: int | None = None) -> Progress:
        num_pairs = self._one(f"SELECT COUNT(*) FROM pairs WHERE {_OF_ROUND}", round, round)[0]
        labels = self._all(
            "SELECT pair, annotator, choice FROM labels JOIN pairs ON pairs.id = pair "
            f"WHERE taken_back_at IS NULL AND {_OF_ROUND} ORDER BY number",
            round,
            round,
        )
        answered = {label["pair"] for label in labels}
        decided = {label["pair"] for label in labels if label["choice"] != "skip"}
        return Progress(num_pairs, len(answered), len(decided), dict(Counter(label["annotator"] for label in labels)))

    def left_side(self, pair: str, annotator: str) -> str:
        """`a` or `b`: which completion this annotator sees on the left; by chance, and the same whenever asked."""
        # salted by the file: else an annotator who knows the code could tell the sides apart
        return "ab"[int(hashlib.sha256(f"{self._salt}:{pair}:{annotator}".encode()).hexdigest(), 16) % 2]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:  # a full disk shows at the commit, and may have ended the transaction
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock:
            return self._database.execute(query, values).fetchone()

    def _all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(query, values).fetchall()


_OF_ROUND = "(? IS NULL OR round = ?)"
# Asked with (annotator, annotator, now).
_OPEN = """
SELECT * FROM pairs WHERE
    NOT EXISTS (SELECT 1 FROM labels WHERE pair = pairs.id AND annotator = ? AND taken_back_at IS NULL)
    AND (is_shared
        OR NOT EXISTS (SELECT 1 FROM labels WHERE pair = pairs.id AND taken_back_at IS NULL AND choice != 'skip')
        AND NOT EXISTS (SELECT 1 FROM leases WHERE pair = pairs.id AND annotator != ? AND until > ?))
"""


def _as_pair(row: sqlite3.Row) -> Pair:
    prompt, columns = json.loads(row["prompt"]), json.loads(row["columns"])
    return Pair(row["id"], prompt, row["a"], row["b"], row["policy"], row["round"], columns)


def _share(pair: str) -> float:
    """A number from 0 to 1 that is the pair's own."""
    return int(hashlib.sha256(f"shared:{pair}".encode()).hexdigest()[:8], 16) / 2**32


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
