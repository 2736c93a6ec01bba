"""prepare: from the sources of a config to checked, deduplicated, split files, and the model to start from.

Written to the stage's final folder, the same bytes on every run:

- `prepared/` (becomes data/prepared): `sft/` and `preference/`, each with `train.parquet` and `eval.parquet`, without
  rows where the line has no preferences; `grpo/train.parquet`, the prompts to explore; `test.parquet`; `summary.json`
  (what became of every source's rows, token lengths, a hash over the data); `skipped.jsonl` (bad rows)
- `base/` (becomes models/base): the model made from `model.init`, or `reference.json` with the name and revision of
  one, and its tokenizer if `model.chat_template` gives that a template

and to its report folder: `metrics.json` and `lengths.svg`, in the tokens of the line's own tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import transformers
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import PreTrainedTokenizerBase

from stages.context import StageContext
from stages.schema import PipelineConfig, Source
from stages.start import START, verify_start
from stages.storage import publish_folder
from tuneline.data.lengths import Lengths, bin_edges, demonstration_lengths, preference_lengths, prompt_lengths
from tuneline.data.preparation import Prepared, prepare_rows
from tuneline.data.readers import BadRow, SourceRow, iter_source
from tuneline.data.storage import content_hash, write_parquet
from tuneline.data.synthetic import Role, make_rows
from tuneline.data.validation import UnfitError
from tuneline.data.worked import as_chat, with_solution
from tuneline.errors import ConfigError
from tuneline.logging import get_logger
from tuneline.models.loading import load_tokenizer
from tuneline.models.tiny import make_model

logger = get_logger(__name__)

SOURCES = ("demonstrations", "preferences", "collected", "prompts", "test")


def main() -> None:
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    context = StageContext.load("prepare")
    with publish_folder(context.final) as aside:
        prepare(context.config, aside / "prepared", aside / "base", context.report)


def prepare(config: PipelineConfig, prepared_folder: Path, base_folder: Path, report_folder: Path) -> None:
    """Write the data, the model to start from, and the account of both."""
    options = config.prepare
    rows = prepare_rows(
        _read(options.demonstrations, "demonstrations", config) if options.demonstrations else None,
        _read(options.preferences, "preferences", config) if options.preferences else None,
        _read(options.test, "test", config) if options.test else None,
        options.eval_fraction,
        options.on_bad_rows,
        _read(options.prompts, "prompts", config) if options.prompts else None,
        iter_source(options.collected) if options.collected else None,
    )
    files = _write_rows(rows, prepared_folder)
    tokenizer = _make_base(config, rows, base_folder)
    lengths = _lengths(files, tokenizer, options.max_length)
    summary = _summary(config, rows, lengths, content_hash(prepared_folder, files.values()))
    _write_json(prepared_folder / "summary.json", summary)
    _write_json(report_folder / "metrics.json", _metrics(rows, lengths))
    plot_lengths(report_folder / "lengths.svg", lengths, options.max_length)
    for name, counts in rows.counts.items():
        logger.info("%s: %s", name, ", ".join(f"{step} {number:,}" for step, number in counts.as_dict().items()))


def _read(source: Source, role: Role, config: PipelineConfig) -> Iterable[SourceRow | BadRow]:
    if source.synthetic is not None:
        made = make_rows(role, **source.synthetic.model_dump(), seed=config.seed)
        return (
            SourceRow(f"synthetic {role}", number, row) for number, row in enumerate(made[: config.prepare.max_rows], 1)
        )
    assert source.path is not None
    rows = iter_source(
        source.path,
        split=source.split,
        revision=source.revision,
        subset=source.subset,
        columns=source.columns,
        max_rows=config.prepare.max_rows,
    )
    return (_rewritten(row, source) for row in rows)


def _rewritten(row: SourceRow | BadRow, source: Source) -> SourceRow | BadRow:
    """A row with its solution apart and in chat form, as the source says."""
    if isinstance(row, BadRow):
        return row
    values = row.values
    try:
        if source.worked is not None:
            values = with_solution(values, **source.worked.model_dump())
    except UnfitError as unfit:
        return BadRow(row.file, row.number, unfit.field, unfit.reason, row.values)
    return replace(row, values=as_chat(values, source.system) if source.chat else values)


def _write_rows(rows: Prepared, folder: Path) -> dict[str, Path]:
    """The Parquet files by their names in reports, and the rows that were skipped."""
    files = {
        name: folder / f"{name}.parquet"
        for name in ("sft/train", "sft/eval", "preference/train", "preference/eval", "grpo/train", "test")
    }
    for name, split, more in (("sft", rows.demonstrations, []), ("preference", rows.preferences, rows.collected)):
        write_parquet({files[f"{name}/train"]: [*split.train, *more], files[f"{name}/eval"]: split.eval})
    write_parquet({files["grpo/train"]: rows.prompts})
    write_parquet({files["test"]: rows.test})
    with (folder / "skipped.jsonl").open("w", encoding="utf-8") as skipped:
        for bad in rows.bad:
            line = {"file": bad.file, "row": bad.number, "field": bad.field, "reason": bad.reason, "values": bad.values}
            skipped.write(json.dumps(line, default=str) + "\n")
    return files


def _make_base(config: PipelineConfig, rows: Prepared, folder: Path) -> PreTrainedTokenizerBase:
    """The model the line starts from, made or referred to, and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    template = _chat_template(config.model.chat_template)
    if config.model.init is None:
        name, revision = config.model.source, config.model.revision
        assert name is not None
        if name == START:
            verify_start(Path.cwd())
        _write_json(folder / "reference.json", {"name_or_path": name, "revision": revision})
        tokenizer = load_tokenizer(name, revision=revision)
        if template is not None:
            tokenizer.chat_template = template
            tokenizer.save_pretrained(folder)
        return tokenizer
    model, tokenizer = make_model(config.model.init.model_dump(exclude_none=True), config.seed, texts(rows))
    if template is not None:
        tokenizer.chat_template = template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _chat_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"model.chat_template={path!r} cannot be read ({error}); give the path of a .jinja file."
        ) from None


def texts(rows: Prepared) -> Iterator[str]:
    """What a tokenizer may learn from: the words of the rows to train on, not of those held out.

    Nor of what was collected from the line's own policies: another tokenizer would make another model to start from.
    """
    for row in [*rows.demonstrations.train, *rows.preferences.train]:
        for field in ("prompt", "completion", "chosen", "rejected", "messages", "text"):
            value = row.get(field, "")
            if isinstance(value, str):
                yield value
            else:
                yield from (message["content"] or "" for message in value)


def _lengths(files: dict[str, Path], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Lengths]:
    """Of every file that has rows."""
    measure = {"sft": demonstration_lengths, "preference": preference_lengths}
    lengths = {}
    for name, path in files.items():
        rows = Dataset(InMemoryTable(pq.read_table(path)))
        if len(rows):
            lengths[name] = measure.get(name.split("/")[0], prompt_lengths)(rows, tokenizer, max_length)
    return lengths


def _summary(config: PipelineConfig, rows: Prepared, lengths: dict[str, Lengths], data_hash: str) -> dict[str, Any]:
    sources = {}
    taken_from = {"demonstrations": "preferences", "prompts": "demonstrations"}
    for name in (name for name in SOURCES if name in rows.counts):
        if name == "collected":
            sources[name] = {"from": {"path": config.prepare.collected}, "counts": rows.counts[name].as_dict()}
            continue
        source: Source | None = getattr(config.prepare, name)
        held_out = "preferences" if config.prepare.preferences is not None else "demonstrations"
        origin = taken_from.get(name, held_out) if source is None else _origin(source)
        sources[name] = {"from": origin, "counts": rows.counts[name].as_dict()}
    return {
        "data_hash": data_hash,
        "sources": sources,
        "lengths": {name: of_file.as_dict() for name, of_file in lengths.items()},
    }


def _origin(source: Source) -> dict[str, Any]:
    kept = {"synthetic"} if source.synthetic is not None else None
    return source.model_dump(exclude_none=True, include=kept)


def _metrics(rows: Prepared, lengths: dict[str, Lengths]) -> dict[str, float]:
    """Flat numbers to compare between runs."""
    metrics: dict[str, float] = {}
    for name, counts in rows.counts.items():
        metrics |= {f"{name}/{step}": number for step, number in counts.as_dict().items()}
    for name, of_file in lengths.items():
        metrics[f"{name}/rows"] = len(of_file.lengths)
        metrics[f"{name}/tokens"] = int(of_file.lengths.sum())
        metrics[f"{name}/mean_length"] = round(float(of_file.lengths.mean()), 3)
        metrics[f"{name}/cut_at_max_length"] = of_file.cut
        metrics[f"{name}/dropped_at_max_length"] = of_file.dropped
    return metrics


def plot_lengths(path: Path, lengths: dict[str, Lengths], max_length: int) -> None:
    """A histogram of token lengths for each file, on one axis, the same bytes for the same numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    edges = bin_edges([of_file.lengths for of_file in lengths.values()])
    with plt.rc_context({"svg.hashsalt": "tuneline", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(len(lengths), 1, sharex=True, figsize=(7, 1.3 * len(lengths)), layout="constrained")
        for axis, (name, of_file) in zip(np.atleast_1d(axes), lengths.items(), strict=True):
            counts, _ = np.histogram(of_file.lengths, edges)
            axis.stairs(counts, edges, fill=True, color="#4878a8")
            axis.set_title(f"{name}: {len(of_file.lengths):,} rows", loc="left", fontsize=9)
            if max_length <= edges[-1]:
                axis.axvline(max_length, color="#b04040", linewidth=1)
        axis.set_xlabel(f"tokens a row (prepare.max_length {max_length:,})")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
