"""Tokenised rows kept on disk and found again by what they are made of: rows, tokenizer, options and code.

They lie in `$TUNELINE_CACHE/tokenized`, by default `~/.cache/tuneline/tokenized`, as Arrow files that are mapped into
memory and shared by all processes that read them; of several processes that need the same rows, one tokenises and the
others wait. Together they take no more than `TUNELINE_CACHE_GB` (20) gigabytes: what was not used for longest goes
first, and what a process reads stays. `TUNELINE_CACHE_GB=0`, or `datasets.disable_caching()`, keeps nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
import transformers
from datasets import Dataset, concatenate_datasets, is_caching_enabled
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tuneline.errors import ConfigError
from tuneline.logging import get_logger

logger = get_logger(__name__)

_ROWS_AT_ONCE = 10_000
_DEFAULT_GIGABYTES = 20.0
_NUM_MARKED = 64
_marks: list[Any] = []  # open files whose locks tell other processes what this one has read last


def map_cached(dataset: Dataset, function: Callable, arguments: Mapping[str, Any], **options: Any) -> Dataset:
    """`dataset.map(function, fn_kwargs=arguments, **options)`, or its result from an earlier time.

    Rows that cannot be told apart by content, such as those that a function of the user makes, are not kept here;
    `datasets` may still know them.
    """
    limit = size_limit()
    key = cache_key(dataset, function, arguments) if limit and is_caching_enabled() else None
    if key is None:
        return dataset.map(function, fn_kwargs=dict(arguments), **options)
    folder = cache_folder()
    if not _is_writable(folder):
        logger.warning("tokenised rows are not kept: %s cannot be written; set TUNELINE_CACHE to a folder", folder)
        return dataset.map(function, fn_kwargs=dict(arguments), **options)
    entry = folder / key
    with _locked(folder / f"{key}.lock"):
        if entry.is_dir():
            logger.info("tokenised rows of an earlier time: %s", entry)
        else:
            work = folder / f"{key}.part"
            shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
            work.mkdir()
            dataset.map(
                function,
                fn_kwargs=dict(arguments),
                cache_file_name=str(work / "rows.arrow"),
                load_from_cache_file=False,
                new_fingerprint=key,
                **options,
            )
            work.rename(entry)
        _mark_used(folder / f"{key}.use")
        shards = [Dataset.from_file(str(path)) for path in sorted(entry.glob("rows*.arrow"))]
    remove_oldest(folder, limit)
    return concatenate_datasets(shards)


def cache_folder() -> Path:
    """Where tokenised rows are kept."""
    if given := os.environ.get("TUNELINE_CACHE"):
        return Path(given) / "tokenized"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "tuneline" / "tokenized"


def size_limit() -> int:
    """The most that tokenised rows may take, in bytes.

    Raises:
        ConfigError: `TUNELINE_CACHE_GB` is no number, or below zero.
    """
    given = os.environ.get("TUNELINE_CACHE_GB", str(_DEFAULT_GIGABYTES))
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        raise ConfigError(f"TUNELINE_CACHE_GB={given!r} is no number of gigabytes; give one of at least 0.")
    return int(gigabytes * 1e9)


def remove_oldest(folder: Path, limit: int) -> None:
    """Remove entries, longest unused first, until all together take `limit` bytes; those in use stay."""
    with _locked(folder / "removing.lock"):  # or a process would measure what another takes away
        uses = {use.with_suffix(""): use for use in folder.glob("*.use")}
        sizes = {entry: sum(file.stat().st_size for file in entry.glob("*")) for entry in uses if entry.is_dir()}
        total = sum(sizes.values())
        for entry in sorted(sizes, key=lambda entry: uses[entry].stat().st_mtime):
            if total <= limit:
                return
            with uses[entry].open() as use, entry.with_suffix(".lock").open("a") as lock:
                if _try_lock(use) and _try_lock(lock):
                    shutil.rmtree(entry)
                    total -= sizes[entry]
                    logger.info("removed tokenised rows that were not used for longest: %s", entry)


def cache_key(dataset: Dataset, function: Callable, arguments: Mapping[str, Any]) -> str | None:
    """A digest of all that the rows depend on; None where that cannot be told by content."""
    digest = hashlib.sha256()
    parts: list[Any] = [transformers.__version__, tokenizers.__version__, f"{function.__module__}.{function.__name__}"]
    for name, value in sorted(arguments.items()):
        if isinstance(value, PreTrainedTokenizerBase):
            # a tokenizer from elsewhere may do anything with its state
            if not type(value).__module__.startswith("transformers."):
                return None
            parts += [name, tokenizer_state(value)]
        elif _is_plain(value):
            parts += [name, value]
        else:
            return None
    if "strftime_now" in json.dumps(parts):
        parts.append(date.today().isoformat())
    digest.update(json.dumps(parts).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    _add_rows(dataset, digest)
    return digest.hexdigest()[:32]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | bool | int | float)


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What decides about the ids that a tokenizer gives; settings that each call makes anew are no part of it."""
    state: list[Any] = [
        type(tokenizer).__qualname__,
        tokenizer.chat_template,
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer.split_special_tokens,
    ]
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        return [*state, {name: part for name, part in backend.items() if name not in ("truncation", "padding")}]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return [*state, {file.name: file.read_bytes().hex() for file in sorted(Path(folder).glob("*"))}]


def _add_rows(dataset: Dataset, digest: Any) -> None:
    """The rows in the stream format of Arrow, taken out of whatever they are a slice of, so that they begin alike."""
    for table in dataset.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        table = table.replace_schema_metadata(None).take(np.arange(len(table))).combine_chunks()
        with pa.ipc.new_stream(pa.PythonFile(_Digested(digest), mode="w"), table.schema) as stream:
            stream.write_table(table)


class _Digested:
    """A file that is only written to, and kept as its digest."""

    closed = False

    def __init__(self, digest: Any):
        self.digest = digest
        self.size = 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among processes; the kernel frees the lock when a process ends, however it ends."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mark_used(path: Path) -> None:
    file = path.open("a")
    fcntl.flock(file, fcntl.LOCK_SH)
    os.utime(path)
    _marks.append(file)
    while len(_marks) > _NUM_MARKED:
        _marks.pop(0).close()


def _try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
