"""What one run of the line did: the record behind the final table, the HTML report and `tuneline report`."""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from stages.off import why_off
from stages.storage import write_whole
from tuneline.errors import TunelineError

StageState = Literal["ran", "cached", "failed", "stopped", "not started"]
LAST_RUN = Path(".work/last_run.json")


@dataclass(frozen=True)
class StageSummary:
    """One stage of one run; `seconds` is what it took in this run, near 0 for a cached one."""

    name: str
    state: StageState
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    """What reports/NAME/metrics.json holds."""
    off: str = ""
    """Why the config turns the stage off; empty for one that has something to do."""
    error: str = ""
    """What a failed stage told: the reason, or the end of its log."""

    @property
    def shown_state(self) -> str:
        return "off" if self.off else self.state


@dataclass(frozen=True)
class RunSummary:
    """One run of the whole line, or of one stage."""

    name: str
    config: dict[str, Any]
    """The resolved config, as in params.yaml."""
    stages: tuple[StageSummary, ...]
    started: datetime
    finished: datetime
    flow_run: str = ""
    """Prefect's name of the run."""
    parent_run: str = ""
    """MLflow's id of the run; empty when nothing was recomputed or MLflow could not be reached."""
    stopped: str = ""
    """What stopped the run before its end; empty for one that ended by itself, well or not."""
    again: str = ""
    """The command that goes on with the run, or repeats it."""

    @property
    def seconds(self) -> float:
        return (self.finished - self.started).total_seconds()

    @property
    def failed(self) -> bool:
        return any(stage.state in ("failed", "stopped") for stage in self.stages)

    @property
    def all_cached(self) -> bool:
        return all(stage.state == "cached" for stage in self.stages)


def read_metrics(root: Path, stage: str) -> dict[str, float]:
    """The numbers of reports/STAGE/metrics.json; empty when the stage has made none."""
    path = root / "reports" / stage / "metrics.json"
    if not path.is_file():
        return {}
    values = json.loads(path.read_text())
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def read_off(root: Path, stage: str) -> str:
    """Why the stage was turned off when it last ran; empty when it was not."""
    return why_off(root / ("data/collected" if stage == "collect" else f"models/{stage}")) or ""


def cached_summary(root: Path, config: dict[str, Any], stages: list[str]) -> RunSummary:
    """The summary of a run in which DVC had everything."""
    now = datetime.now(UTC)
    cached = tuple(
        StageSummary(stage, "cached", 0.0, read_metrics(root, stage), read_off(root, stage)) for stage in stages
    )
    return RunSummary(str(config["name"]), config, cached, now, now)


def save_last_run(root: Path, run: RunSummary) -> Path:
    """Keeps the summary for `tuneline report`."""
    return save_run(root / LAST_RUN, run)


def save_run(path: Path, run: RunSummary) -> Path:
    """Keeps a summary as JSON, written aside and renamed."""
    write_whole(path, json.dumps(asdict(run), indent=1, default=datetime.isoformat))
    return path


def load_last_run(root: Path) -> RunSummary:
    """The summary of the last run in this checkout.

    Raises:
        TunelineError: there was none, or its record cannot be read.
    """
    path = root / LAST_RUN
    if not path.is_file():
        raise TunelineError(f"{path} does not exist: nothing was run in this checkout yet; use `tuneline run CONFIG`.")
    return load_run(path)


def load_run(path: Path) -> RunSummary:
    """A summary that `save_run` has kept.

    Raises:
        TunelineError: it cannot be read.
    """
    try:
        record = json.loads(path.read_text())
        stages = tuple(StageSummary(**stage) for stage in record.pop("stages"))
        started, finished = (datetime.fromisoformat(record.pop(name)) for name in ("started", "finished"))
        return RunSummary(stages=stages, started=started, finished=finished, **record)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TunelineError(f"{path} cannot be read ({error}); run the line again, and it is written anew.") from error


_KEY_METRICS = {
    "sft": ("eval/loss", "eval/mean_token_accuracy"),
    "reward": ("eval/accuracy", "eval/loss"),
    "dpo": ("eval/rewards/accuracies", "eval/loss"),
    "ppo": ("train/reward", "train/rewards/verifier/mean", "train/objective/kl"),
    "grpo": ("train/reward", "train/completions/mean_length", "train/kl"),
    "collect": ("num_pairs", "num_preferences", "num_ties", "reward_model_accuracy"),
    "evaluate": (
        "sft/accuracy",
        "dpo/accuracy",
        "ppo/accuracy",
        "grpo/accuracy",
        "reward_model/pairwise_accuracy",
        "dpo/win_rate_reward",
    ),
}
_COUNTS = {
    "demonstrations/train": "demonstrations",
    "preferences/train": "pairs",
    "prompts/train": "prompts",
    "test/eval": "test prompts",
}


def headline(stage: StageSummary, num_metrics: int = 5) -> str:
    """The few numbers of a stage that say most, such as `eval/accuracy 0.87, eval/loss 0.412`."""
    if stage.off:
        return stage.off.removeprefix("off: ")
    if stage.name == "prepare" and any(name in stage.metrics for name in _COUNTS):
        return ", ".join(f"{stage.metrics[name]:,} {what}" for name, what in _COUNTS.items() if name in stage.metrics)
    names = [name for name in _KEY_METRICS.get(stage.name, ()) if name in stage.metrics]
    names = names or [name for name in stage.metrics if not name.startswith("gates/")][:4]
    return ", ".join(f"{name} {_short(stage.metrics[name])}" for name in names[:num_metrics])


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
