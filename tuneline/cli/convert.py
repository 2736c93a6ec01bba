"""`tuneline convert SOURCE TARGET --to TYPE`: a data set as another of the types that the trainers read."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from tuneline.data.conversions import convert_dataset, dataset_type
from tuneline.data.mixtures import DatasetConfig, load_part
from tuneline.errors import ConfigError

TARGETS = (".jsonl", ".parquet", ".csv")


def convert(source: str, target: str, to: str, *, split: str = "train", force: bool = False) -> str:
    """Write the rows of a file, a folder or a name on a hub as another type; gives back a line that says so.

    Args:
        to: a type of data set, as `convert_dataset` has them.

    Raises:
        ConfigError: a target that is there, or of an unknown kind; an unknown type.
        DataError: rows that cannot be read, or that do not say enough.
    """
    path = Path(target)
    if path.suffix not in TARGETS:
        raise ConfigError(f"{target}: the name of a target ends in one of {', '.join(TARGETS)}.")
    if path.exists() and not force:
        raise ConfigError(f"{target} exists; name another file, or pass --force to write over it.")
    rows = load_part(DatasetConfig(source, split=split))
    assert isinstance(rows, Dataset)  # streaming was not asked for
    converted = convert_dataset(rows, to)
    match path.suffix:
        case ".jsonl":
            converted.to_json(target, force_ascii=False)
        case ".parquet":
            converted.to_parquet(target)
        case ".csv":
            converted.to_csv(target, index=False)
    columns = ", ".join(converted.column_names)
    return f"{target}: {len(converted):,} rows of {columns}, from {len(rows):,} of type {dataset_type(rows)}"
