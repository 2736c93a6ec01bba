"""What the training stages share: resume, whole checkpoints, metrics by step, the published model."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Dataset
from datasets.table import InMemoryTable
from peft import LoraConfig, PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from stages.context import StageContext
from stages.gates import gate_metrics
from stages.off import PLOTTED
from stages.schema import TrainingSection
from stages.start import START, verify_start
from stages.storage import publish_folder, read_metrics, sync_tree, write_whole
from stages.supervise import crash_point
from tuneline.errors import ConfigError, DataError
from tuneline.logging import get_logger
from tuneline.models.loading import load_causal_lm, load_tokenizer, resolve_model
from tuneline.trainers.base import BaseTrainer

logger = get_logger(__name__)

COMPLETE = "COMPLETE"  # written into a checkpoint when all of it is on disk
CLOCKS = (
    "runtime",
    "per_second",
    "preparation_time",
    "step_time",
    "train/eps",
)  # metrics of the machine, not of the run


def training_arguments(context: StageContext, section: TrainingSection, config_class: type, **more: Any) -> Any:
    """The trainer's configuration: the section's options over what a stage needs, and `more` that it decides."""
    defaults = {
        "seed": context.config.seed,
        "save_total_limit": 2,  # the last whole one stays while the next is written
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    fixed = {"output_dir": str(context.work), "report_to": "none", "disable_tqdm": True, **more}
    try:
        return config_class(**{**defaults, **section.training, **fixed})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{context.name}.training: {' '.join(str(error).split())}") from error


def lora(section: TrainingSection, task_type: str) -> LoraConfig | None:
    return None if section.peft is None else LoraConfig(**{"task_type": task_type, **section.peft})


def read_rows(path: Path) -> Dataset:
    """Prepared rows, read into memory: nothing is cached outside the work folder."""
    if not path.is_file():
        raise DataError(f"{path} is missing; run the stage that makes it: tuneline stage prepare")
    return Dataset(InMemoryTable(pq.read_table(path)))


def model_source(context: StageContext, folder: Path) -> tuple[str, dict[str, Any], Any]:
    """Name, `from_pretrained` keywords and tokenizer of the model that a stage starts from."""
    name, revision = resolve_model(folder)
    if name == START:
        verify_start(Path.cwd())
    keywords: dict[str, Any] = {"dtype": getattr(torch, context.config.model.dtype)}
    if revision is not None:
        keywords["revision"] = revision
    tokenizer_folder = folder if (folder / "tokenizer_config.json").is_file() else None
    tokenizer = load_tokenizer(str(tokenizer_folder or name), revision=None if tokenizer_folder else revision)
    if tokenizer.chat_template is None and context.config.model.chat_template is not None:
        tokenizer.chat_template = Path(context.config.model.chat_template).read_text(encoding="utf-8")
    return name, keywords, tokenizer


def train_policy(
    context: StageContext,
    trainer_class: Callable[..., BaseTrainer],
    config_class: type,
    source: Path,
    data: Path,
) -> None:
    """Train the causal language model that lies in `source` on the rows in `data`/train.parquet."""
    section: TrainingSection = getattr(context.config, context.name)
    name, keywords, tokenizer = model_source(context, source)

    def make_trainer() -> BaseTrainer:
        return trainer_class(
            model=load_causal_lm(name, **keywords),
            args=training_arguments(context, section, config_class),
            train_dataset=read_rows(data / "train.parquet"),
            eval_dataset=read_rows(data / "eval.parquet"),
            processing_class=tokenizer,
            peft_config=lora(section, "CAUSAL_LM"),
        )

    run_training(context, make_trainer)


Trainer = TypeVar("Trainer", bound=BaseTrainer)
Weights = tuple[Any, dict[str, Any]]  # a model, and its tensors gathered from all processes


def run_training(
    context: StageContext,
    make_trainer: Callable[[], Trainer],
    published: Callable[[Any, dict[str, Any]], Weights] = lambda model, tensors: (model, tensors),
) -> Trainer:
    """Train from the last whole checkpoint on, then write the model, the curve and the metrics; the trainer.

    Args:
        published: what is published of the module that was trained.
    """
    # COMPLETE gives checkpoints new times; transformers then orders them by their numbers, and says so each time
    logging.getLogger("transformers.trainer_utils").addFilter(lambda record: "mtime" not in record.getMessage())
    checkpoint = last_checkpoint(context.work)
    trainer = make_trainer()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(MetricsFile(context.metrics_file))
    trainer.add_callback(WholeCheckpoints())
    if checkpoint is not None:
        logger.info("%s: goes on from %s", context.name, checkpoint.name)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    evaluation = trainer.evaluate() if trainer.eval_dataset is not None else {}
    crash_point("trained")
    save_model(trainer, context.final, published)
    if trainer.is_world_process_zero():
        write_report(context, trainer, evaluation)
    PartialState().wait_for_everyone()
    return trainer


class MetricsFile(TrainerCallback):
    """Appends every log line to metrics.jsonl; a resumed run first drops what lies past its checkpoint.

    A line that is written again gets the timestamp that it had, so that a reader knows the point that it has seen.
    """

    def __init__(self, path: Path):
        self.path = path
        self.dropped = path.with_name("metrics.dropped.jsonl")
        self._first_written: dict[tuple[int, tuple[str, ...]], int] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        lines = read_metrics(self.path)
        dropped = [line for line in lines if line["step"] > state.global_step]
        with self.dropped.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in dropped)
        for line in read_metrics(self.dropped):
            self._first_written.setdefault(_place(line), line["timestamp"])
        kept = (line for line in lines if line["step"] <= state.global_step)
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        metrics = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if not state.is_world_process_zero or "train_runtime" in metrics:
            return
        line = {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "timestamp": int(time.time() * 1000),
            "metrics": {f"{'' if name.startswith('eval_') else 'train/'}{name}": v for name, v in metrics.items()},
        }
        line["timestamp"] = self._first_written.get(_place(line), line["timestamp"])
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = (
            "reward",
            "completions/mean_length",
            "loss",
            "eval_loss",
            "rewards/accuracies",
            "accuracy",
            "mean_token_accuracy",
            "learning_rate",
        )
        values = ", ".join(f"{name} {metrics[name]:.4g}" for name in shown if name in metrics)
        logger.info("step %d of %d: %s", state.global_step, state.max_steps, values)


def _place(line: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    return line["step"], tuple(sorted(line["metrics"]))


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint complete once every process has written its part and all of it is on disk."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            sync_tree(folder)
            (folder / COMPLETE).touch()
            sync_tree(folder)
            crash_point(f"checkpoint-{state.global_step}")


def last_checkpoint(work: Path) -> Path | None:
    """The newest complete checkpoint. Others were cut off while they were written, and are passed over."""
    whole = [path for path in work.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def save_model(trainer: BaseTrainer, final: Path, published: Callable[[Any, dict[str, Any]], Weights]) -> None:
    """Weights as safetensors, tokenizer and chat template; with LoRA the merged model, and the adapter beside it."""
    tensors = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        model, state_dict = published(trainer.accelerator.unwrap_model(trainer.model_wrapped), tensors)
        with publish_folder(final) as aside:
            if isinstance(model, PeftModel):
                adapters = list(model.active_adapters)  # without those that served training alone
                model.save_pretrained(aside / "adapter", state_dict=state_dict, selected_adapters=adapters)
                model.merge_and_unload().save_pretrained(aside)
            else:
                model.save_pretrained(aside, state_dict=state_dict)
            trainer.processing_class.save_pretrained(aside)
    trainer.accelerator.wait_for_everyone()


def is_of_machine(name: str) -> bool:
    """Whether a metric tells how fast the machine was, so that the same run has another one elsewhere."""
    return name.endswith(CLOCKS) or "profiling/" in name or "/time/" in name


def write_report(context: StageContext, trainer: BaseTrainer, evaluation: dict[str, float]) -> None:
    """curve.csv and metrics.json: numbers that the same inputs give again, none that tells of the machine."""
    lines = read_metrics(context.metrics_file)
    rows: dict[int, dict[str, float]] = {}
    for line in lines:
        rows.setdefault(line["step"], {}).update(line["metrics"])
    logged = {name for row in rows.values() for name in row if not is_of_machine(name) and name != "train/epoch"}
    names = sorted(logged | set(PLOTTED[context.name]))
    context.report.mkdir(parents=True, exist_ok=True)
    with (context.report / "curve.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *names])
        for step, row in sorted(rows.items()):
            writer.writerow([step, *(row.get(name, "") for name in names)])
    metrics: dict[str, float] = {"steps": trainer.state.global_step}
    last: dict[str, float] = next((line["metrics"] for line in reversed(lines) if "train/loss" in line["metrics"]), {})
    skipped = ("train/epoch", "train/learning_rate")
    metrics |= {name: value for name, value in last.items() if not is_of_machine(name) and name not in skipped}
    metrics |= {
        name.replace("eval_", "eval/", 1): value
        for name, value in evaluation.items()
        if not is_of_machine(name) and not name.endswith(("epoch", "num_tokens"))
    }
    for dataset, report in trainer.tokenization_reports.items():
        counts = {name: n for name, n in asdict(report).items() if n is not None}
        metrics |= {f"data/{dataset}/{name}": n for name, n in counts.items()}
    metrics |= gate_metrics(context.work)
    (context.report / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
