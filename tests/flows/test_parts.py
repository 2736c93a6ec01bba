"""The small parts around a stage: its output, its progress, its records, and what the terminal shows."""

import io
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from flows.settings import apply_settings, has_prefect_server, mlflow_ui_command, prefect_ui_command
from flows.terminal import print_end
from stages.off import write_nothing
from tasks.display import Display, in_words
from tasks.estimates import estimate
from tasks.history import PastRun, add_to_history, read_history
from tasks.progress import Progress, read_progress
from tasks.summary import RunSummary, StageSummary, cached_summary, load_last_run, save_last_run
from tuneline.errors import TunelineError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Path]:
    """A checkout's root whose settings are in the environment, and none of the user's."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("PREFECT_", "MLFLOW_", "TUNELINE_", "DO_NOT_TRACK")):
            del os.environ[name]
    apply_settings(tmp_path)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


def run_of(*stages: StageSummary) -> RunSummary:
    return RunSummary("toy", {"seed": 1}, stages, NOW, NOW)


def write_metrics(root: Path, text: str) -> None:
    folder = root / ".work" / "dpo" / "identity"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(text)


def test_progress_is_the_last_whole_line_with_what_earlier_ones_knew(tmp_path: Path):
    lines = [
        {"step": 10, "max_steps": 40, "timestamp": 1, "metrics": {"train/loss": 0.7}},
        {"step": 20, "max_steps": 40, "timestamp": 2, "metrics": {"eval_loss": 0.6}},
    ]
    write_metrics(tmp_path, "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "max_')
    progress = read_progress(tmp_path, "dpo", since=0.0)
    assert progress == Progress(20, 40, {"train/loss": 0.7, "eval_loss": 0.6})
    assert progress.share == 0.5
    assert progress.describe() == "20/40 steps, loss 0.7, eval_loss 0.6"


def test_progress_of_an_earlier_run_is_not_shown(tmp_path: Path):
    write_metrics(tmp_path, '{"step": 1, "max_steps": 2, "metrics": {}}\n')
    assert (
        read_progress(tmp_path, "dpo", since=os.path.getmtime(tmp_path / ".work/dpo/identity/metrics.jsonl") + 1)
        is None
    )
    assert read_progress(tmp_path, "sft", since=0.0) is None


def test_a_run_is_kept_and_read_back(tmp_path: Path):
    run = run_of(StageSummary("sft", "ran", 3.5, {"loss": 0.5}), StageSummary("dpo", "failed", 1.0))
    save_last_run(tmp_path, run)
    assert load_last_run(tmp_path) == run
    assert run.failed
    assert not run.all_cached


def test_without_a_run_there_is_one_message(tmp_path: Path):
    with pytest.raises(TunelineError, match="nothing was run in this checkout yet"):
        load_last_run(tmp_path)
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "last_run.json").write_text("{")
    with pytest.raises(TunelineError, match="cannot be read"):
        load_last_run(tmp_path)


def test_history_keeps_the_last_time_that_each_stage_ran(tmp_path: Path):
    add_to_history(tmp_path, run_of(StageSummary("sft", "ran", 60.0, {"steps": 30}), StageSummary("dpo", "ran", 9.0)))
    add_to_history(tmp_path, run_of(StageSummary("sft", "cached", 0.1), StageSummary("dpo", "failed", 1.0)))
    assert read_history(tmp_path, "toy") == {"sft": PastRun(60.0, 30), "dpo": PastRun(9.0, None)}
    assert read_history(tmp_path, "another") == {}


def test_an_estimate_scales_the_last_time_by_the_steps(tmp_path: Path):
    (tmp_path / "reports" / "prepare").mkdir(parents=True)
    metrics = {"demonstrations/train": 100, "sft/train/tokens": 5000}
    (tmp_path / "reports" / "prepare" / "metrics.json").write_text(json.dumps(metrics))
    training = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    expected = estimate(tmp_path, "sft", {"sft": {"training": training}}, PastRun(60.0, 7), prepared=True)
    # 100 rows are 13 batches of 8, in 7 steps of 2; two epochs of them are 14 steps
    assert (expected.steps, expected.tokens, expected.seconds) == (14, 10_000, 120.0)
    limited = estimate(tmp_path, "sft", {"sft": {"training": {**training, "max_steps": 50}}}, None, prepared=True)
    assert (limited.steps, limited.tokens, limited.seconds) == (50, 5000 * 8, None)  # 50 x 16 rows of 100


def test_the_table_shows_time_state_and_metrics(settings: Path):
    shown = io.StringIO()
    ran = StageSummary("evaluate", "ran", 75.0, {"dpo/accuracy": 0.8125, "sft/accuracy": 0.5})
    print_end(settings, Console(file=shown, width=120), run_of(StageSummary("sft", "cached", 0.0), ran))
    lines = [line.split() for line in shown.getvalue().splitlines()]
    assert ["sft", "-", "cached"] in lines
    assert ["evaluate", "1:15", "ran", "sft/accuracy", "0.5,", "dpo/accuracy", "0.812"] in lines


def test_a_stage_that_is_off_says_so_and_why(settings: Path):
    shown = io.StringIO()
    off = StageSummary("dpo", "ran", 2.5, {}, "off: prepare.preferences is null")
    run = run_of(StageSummary("sft", "ran", 60.0, {"steps": 30}), off)
    print_end(settings, Console(file=shown, width=120), run)
    lines = [line.split() for line in shown.getvalue().splitlines()]
    assert ["dpo", "-", "off", "prepare.preferences", "is", "null"] in lines
    add_to_history(settings, run)
    assert set(read_history(settings, "toy")) == {"sft"}  # nothing to estimate from


def test_what_a_stage_that_is_off_left_is_read_again(tmp_path: Path):
    write_nothing("dpo", tmp_path, "off: prepare.preferences is null")
    (tmp_path / "final").rename(tmp_path / "dpo")
    (tmp_path / "models").mkdir()
    (tmp_path / "dpo").rename(tmp_path / "models" / "dpo")
    summary = cached_summary(tmp_path, {"name": "toy"}, ["sft", "dpo"])
    assert [stage.shown_state for stage in summary.stages] == ["cached", "off"]
    assert summary.all_cached


def test_grpo_and_ppo_take_as_many_steps_as_their_completions_fill(tmp_path: Path):
    (tmp_path / "reports" / "prepare").mkdir(parents=True)
    (tmp_path / "reports" / "prepare" / "metrics.json").write_text(json.dumps({"prompts/train": 100}))
    training = {"per_device_train_batch_size": 16, "num_train_epochs": 1}
    expected = estimate(tmp_path, "grpo", {"grpo": {"training": training}}, None, prepared=True)
    assert (expected.steps, expected.tokens) == (50, None)  # 100 prompts x 8 completions in batches of 16
    rloo = {"method": "rloo", "training": {**training, "num_iterations": 2}}
    assert estimate(tmp_path, "grpo", {"grpo": rloo}, None, prepared=True).steps == 25  # 2 completions, twice
    ppo = {"training": training}
    assert estimate(tmp_path, "ppo", {"ppo": ppo}, None, prepared=True).steps == 25  # 1 completion, 4 times
    ppo = {"training": {**training, "num_mini_batches": 2, "num_ppo_epochs": 1, "total_episodes": 640}}
    assert estimate(tmp_path, "ppo", {"ppo": ppo}, None, prepared=True).steps == 40


def test_a_run_without_work_says_so(settings: Path):
    shown = io.StringIO()
    print_end(settings, Console(file=shown, width=120), run_of(StageSummary("sft", "cached", 0.0)))
    assert "Nothing to do: sft is up to date" in shown.getvalue()


@pytest.mark.parametrize(("seconds", "words"), [(4.24, "4.2 s"), (187.0, "3:07"), (7387.0, "2:03:07")])
def test_durations_in_words(seconds: float, words: str):
    assert in_words(seconds) == words


def test_the_display_is_silent_until_it_is_started():
    display = Display()
    display.start("sft")
    display.update("sft", Progress(1, 2))
    display.end("sft", "✓", "done", "")


def test_the_display_writes_plain_lines_where_there_is_no_terminal():
    shown = io.StringIO()
    display = Display()
    with display.shown_on(Console(file=shown, width=80)):
        display.start("sft")
        display.end("sft", "✓", "3.0 s", "green")
    assert shown.getvalue() == "  sft       started\n✓ sft       3.0 s\n"


def test_a_live_display_shows_steps_and_the_time_left():
    display = Display()
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with display.shown_on(console):
        display.start("dpo")
        display.update("dpo", Progress(10, 40, {"train/loss": 0.61}))
        display.update("dpo", Progress(20, 40, {"train/loss": 0.5}))
        with console.capture() as capture:
            console.print(display._render())
    assert "20/40 steps, loss 0.5" in capture.get()
    assert "left" in capture.get()


def test_settings_keep_all_in_the_checkout(settings: Path):
    assert os.environ["PREFECT_HOME"] == str(settings / ".prefect")
    assert os.environ["PREFECT_RESULTS_LOCAL_STORAGE_PATH"] == str(settings / ".prefect" / "storage")
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert prefect_ui_command(settings).endswith("tuneline server")
    command = mlflow_ui_command(settings, f"sqlite:///{settings}/mlflow.db")
    assert " --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 " in command


def test_settings_leave_what_the_user_has_set(settings: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "true")
    apply_settings(settings)
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "true"


def test_a_server_may_be_named_in_a_profile(settings: Path):
    assert not has_prefect_server()
    profile = 'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:4200/api"\n'
    (settings / ".prefect" / "profiles.toml").write_text(profile)
    assert has_prefect_server()
