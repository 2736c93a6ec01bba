"""Training data from several sources: laid end to end, in shares, or interleaved by weights, also as a stream.

Names and defaults are those of TRL 1.16. What is here besides: files and folders are read with the errors of
`tuneline.data.readers`; `weight` and `interleave` draw the sources in turns, where TRL only lays them end to end; the
split into train and test is seeded, so that it is the same in every process and run, and streams can be split too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    concatenate_datasets,
    interleave_datasets,
    load_dataset,
)
from datasets.exceptions import DatasetGenerationError

from tuneline.data.readers import BadRow, bad_rows_error, iter_source, read_source, saved_dataset
from tuneline.errors import ConfigError, DataError
from tuneline.logging import get_logger

logger = get_logger(__name__)

AnyDataset: TypeAlias = Dataset | IterableDataset

_STOPPING = ("first_exhausted", "all_exhausted")


@dataclass
class DatasetConfig:
    """One source of a mixture: the arguments of `datasets.load_dataset`, or a file or folder that lies here.

    Attributes:
        fraction: the share of this source in the mixture, in (0, 1]. Shares are scaled to a sum of one, and as many of
            the first rows of each source are taken as no source runs out of. All sources have one, or none has.
        weight: how often this source is drawn, in relation to the others, where the mixture interleaves.
    """

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | dict[str, str] | None = None
    split: str = "train"
    columns: list[str] | None = None
    fraction: float | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ConfigError(f"datasets: {self.path!r} has fraction={self.fraction}; a share is in (0, 1].")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ConfigError(f"datasets: {self.path!r} has weight={self.weight}; a weight is a number above 0.")


@dataclass
class DatasetMixtureConfig:
    """Several sources as one data set."""

    datasets: list[DatasetConfig] = field(default_factory=list, metadata={"help": "The sources."})
    streaming: bool = field(default=False, metadata={"help": "Read the rows as they are needed."})
    test_split_size: float | None = field(
        default=None, metadata={"help": "Rows to hold out: a share below 1, or a number. A stream needs a number."}
    )
    interleave: bool = field(
        default=False, metadata={"help": "Draw the sources in turns, by their weights, instead of one after the other."}
    )
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = field(
        default="first_exhausted",
        metadata={"help": "Interleaving ends with the first source that runs out, or repeats until all have."},
    )
    seed: int = field(default=42, metadata={"help": "Of the draws of interleaving, and of the test split."})

    def __post_init__(self) -> None:
        self.datasets = [_config(given) for given in self.datasets]
        if self.stopping_strategy not in _STOPPING:
            raise ConfigError(f"stopping_strategy={self.stopping_strategy!r} is unknown; use {' or '.join(_STOPPING)}.")
        fractions = [source.fraction for source in self.datasets if source.fraction is not None]
        weights = [source.weight for source in self.datasets if source.weight is not None]
        for what, given in (("fraction", fractions), ("weight", weights)):
            if given and len(given) < len(self.datasets):
                raise ConfigError(
                    f"datasets: {len(given)} of {len(self.datasets)} have a {what}; give it to all or none."
                )
        if fractions and self.streaming:
            raise ConfigError("datasets: a fraction needs the number of rows, and a stream has none; use weights.")
        if weights and not self.interleave:
            raise ConfigError("datasets: weights are for interleave=True; for shares of a whole set use fraction.")
        if self.test_split_size is not None and self.streaming and self.test_split_size % 1:
            raise ConfigError(
                f"test_split_size={self.test_split_size} is a share of a number of rows that a stream does not know; "
                "give the number of rows to hold out."
            )


@dataclass
class ScriptArguments:
    """What every training script asks for: where its data come from."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Name or path of the data set; not read where `datasets` lists a mixture."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration, where it has several."})
    dataset_train_split: str = field(default="train", metadata={"help": "The split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "The split to evaluate on."})
    dataset_streaming: bool = field(default=False, metadata={"help": "Read the rows as they are needed."})
    ignore_bias_buffers: bool = field(
        default=False, metadata={"help": "Keep boolean buffers of the model out of what DDP synchronises."}
    )


def get_dataset(mixture_config: DatasetMixtureConfig) -> DatasetDict | IterableDatasetDict:
    """The rows of a mixture as `train`, and as `test` where `test_split_size` holds some out.

    Raises:
        ConfigError: no sources, or a test split that leaves nothing on one side.
        DataError: a source that is not there, cannot be read, or lacks a column; sources of different columns.
    """
    config = mixture_config
    if not config.datasets:
        raise ConfigError("The mixture has no data sets; name at least one under `datasets`.")
    parts = [load_part(source, streaming=config.streaming) for source in config.datasets]
    if config.datasets[0].fraction is not None:
        parts = _in_shares(parts, [source.fraction or 0 for source in config.datasets])
    combined = _combined(parts, config)
    if isinstance(combined, Dataset):
        sizes = ", ".join(f"{source.path}: {len(part):,}" for source, part in zip(config.datasets, parts, strict=True))
        logger.info("mixture of %s rows (%s)", f"{len(combined):,}", sizes)
    return _split(combined, config)


def load_part(source: DatasetConfig, *, streaming: bool = False) -> AnyDataset:
    """The rows of one source: a file, a folder saved by `datasets`, or anything that `load_dataset` knows.

    Raises: as `get_dataset`.
    """
    part: Any = saved_dataset(source.path, source.split)
    if part is not None:
        part = part.to_iterable_dataset() if streaming else part
    elif Path(source.path).is_file():
        part = _stream_of(source.path) if streaming else read_source(source.path)
    else:
        try:
            part = load_dataset(
                source.path,
                name=source.name,
                data_dir=source.data_dir,
                data_files=source.data_files,
                split=source.split,
                streaming=streaming,
            )
        except (ValueError, OSError, DatasetGenerationError) as error:
            cause = error.__cause__ or error
            raise DataError(f"{source.path}: its split {source.split!r} cannot be loaded: {cause}") from error
    return part if source.columns is None else _selected(part, source)


def _config(given: DatasetConfig | Mapping[str, Any]) -> DatasetConfig:
    if isinstance(given, DatasetConfig):
        return given
    known = [f.name for f in fields(DatasetConfig)]
    if unknown := [name for name in given if name not in known]:
        raise ConfigError(f"datasets: {', '.join(map(repr, unknown))} is unknown; use {', '.join(known)}.")
    if "path" not in given:
        raise ConfigError(f"datasets: {dict(given)} has no path; name a file, a folder or a data set.")
    return DatasetConfig(**given)


def _stream_of(path: str) -> IterableDataset:
    return IterableDataset.from_generator(_rows_of, gen_kwargs={"path": path})


def _rows_of(path: str) -> Iterator[dict[str, Any]]:
    for row in iter_source(path):
        if isinstance(row, BadRow):
            raise bad_rows_error([row], "Mend or remove it.")
        yield row.values


def _selected(part: AnyDataset, source: DatasetConfig) -> AnyDataset:
    assert source.columns is not None
    found = part.column_names if part.column_names is not None else list(next(iter(part), {}))
    if missing := [name for name in source.columns if name not in found]:
        raise DataError(f"{source.path}: has no column {', '.join(map(repr, missing))}; it has {', '.join(found)}.")
    return part.select_columns(source.columns)


def _in_shares(parts: Sequence[Dataset], fractions: Sequence[float]) -> list[Dataset]:
    """The first rows of each part, in the given shares of the largest mixture that repeats none."""
    shares = [fraction / sum(fractions) for fraction in fractions]
    num_rows = min(len(part) / share for part, share in zip(parts, shares, strict=True))
    return [part.select(range(round(share * num_rows))) for part, share in zip(parts, shares, strict=True)]


def _combined(parts: Sequence[AnyDataset], config: DatasetMixtureConfig) -> AnyDataset:
    try:
        if not config.interleave:
            return concatenate_datasets(list(parts))
        weights = [source.weight or 1.0 for source in config.datasets]
        probabilities = [weight / sum(weights) for weight in weights]
        return interleave_datasets(
            list(parts), probabilities=probabilities, seed=config.seed, stopping_strategy=config.stopping_strategy
        )
    except (ValueError, TypeError, pa.ArrowException) as error:
        columns = "; ".join(
            f"{source.path}: {_described(part.features)}" for source, part in zip(config.datasets, parts, strict=True)
        )
        raise DataError(
            f"The data sets of the mixture have different columns ({columns}): {error}. "
            "Select those that they share with `columns`, or convert them to one type."
        ) from error


def _described(features: Features | None) -> str:
    return "unknown" if features is None else ", ".join(features)


def _split(combined: AnyDataset, config: DatasetMixtureConfig) -> DatasetDict | IterableDatasetDict:
    size = config.test_split_size
    if isinstance(combined, IterableDataset):
        if size is None:
            return IterableDatasetDict({"train": combined})
        return IterableDatasetDict({"train": combined.skip(int(size)), "test": combined.take(int(size))})
    if size is None:
        return DatasetDict({"train": combined})
    num_test = size if size < 1 else int(size)
    try:
        return combined.train_test_split(test_size=num_test, seed=config.seed)
    except ValueError as error:
        raise ConfigError(f"test_split_size={size} does not split {len(combined)} rows in two: {error}") from error
