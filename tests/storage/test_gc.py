"""`tuneline gc` frees what no kept version needs, shows it first, and never while something runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.loading import load_config, write_params
from stages.supervise import stage_lock
from tasks.gc import Keeping, collect, free
from tasks.lineage_records import Records
from tests.flows.checkouts import Checkout
from tests.lineage.checkouts import git, register, repro
from tuneline.errors import TunelineError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def run_with(checkout: Checkout, *overrides: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(checkout.path)
        write_params(load_config("toy.yaml", overrides))
    repro(checkout)


def objects(checkout: Checkout) -> set[Path]:
    return {path for path in (checkout.path / ".dvc/cache").rglob("*") if path.is_file()}


def dvc(checkout: Checkout, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(
        command, cwd=checkout.path, env=checkout.env, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
def test_a_champion_can_be_checked_out_after_what_nobody_needs_is_gone(traced: Checkout):
    kept = objects(traced)
    run_with(traced, "dpo.launch.timeout_hours=2")  # a run that is neither committed nor registered
    nobody = objects(traced) - kept
    run_with(traced, "dpo.launch.timeout_hours=3", "sft.launch.timeout_hours=3")
    register(traced, "dpo")  # registered, never committed: `dvc gc` would drop it
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{traced.path}/mlflow.db")
    client.set_registered_model_alias("toy-dpo", "champion", "2")
    version = client.get_model_version_by_alias("toy-dpo", "champion")
    git(traced.path, "checkout", "-q", "--force", "HEAD")
    dvc(traced, "checkout", "-q")

    shown = traced.call("gc")
    assert "would be freed: `tuneline gc --yes` does it" in shown
    assert nobody < objects(traced)
    shown = traced.call("gc", "--yes")
    assert "Freed " in shown
    left = objects(traced)
    assert not nobody & left
    assert kept <= left
    records = Records(traced.path)
    tree = records.cache.tree(version.tags["dvc.md5"])
    assert tree is not None
    assert all(records.cache.path(md5).is_file() for md5 in tree.values())
    # its settings again: nothing is computed, as the run cache still leads to the results
    traced.forget_tries()
    run_with(traced, "dpo.launch.timeout_hours=3", "sft.launch.timeout_hours=3")
    assert [traced.tries(stage) for stage in ("prepare", "sft", "dpo")] == [0, 0, 0]
    assert [one.kind for one in collect(traced.path).garbage if one.kind == "cache"] == []


@pytest.mark.slow
def test_fewer_versions_and_less_history_free_more_and_recent_days_less(traced: Checkout):
    run_with(traced, "dpo.launch.timeout_hours=2")
    register(traced, "dpo")
    run_with(traced, "dpo.launch.timeout_hours=3")
    register(traced, "dpo")  # the newest, and under the alias challenger
    dpo = {Records(traced.path).current["dpo"].outs["models/dpo"].md5}

    def freed(keeping: Keeping) -> set[str]:
        return {one.path.parent.name + one.path.name for one in collect(traced.path, keeping).garbage}

    every, newest = freed(Keeping()), freed(Keeping(versions=1))
    assert len([one for one in newest if one.endswith(".dir")]) > len([one for one in every if one.endswith(".dir")])
    assert not dpo & newest
    assert newest < freed(Keeping(history="none", versions=1))
    assert not {one for one in freed(Keeping(versions=1, days=1)) if one.endswith(".dir")}


@pytest.mark.slow
def test_other_branches_tags_and_data_added_by_hand_are_kept(traced: Checkout):
    (traced.path / "extra.csv").write_text("a,b\n1,2\n")
    dvc(traced, "add", "-q", "extra.csv")
    git(traced.path, "checkout", "-q", "-b", "other")
    run_with(traced, "reward.launch.timeout_hours=2")
    git(traced.path, "add", "-A")
    git(traced.path, "commit", "-qm", "On another branch")
    git(traced.path, "checkout", "-q", "-")
    before = objects(traced)
    assert [one for one in collect(traced.path).garbage if one.kind in ("cache", "run cache")] == []
    lost = [one.path for one in collect(traced.path, Keeping(history="none")).garbage]
    assert lost
    assert set(lost) <= before


def test_data_added_by_hand_is_kept_before_it_is_committed(traced: Checkout):
    before = objects(traced)
    (traced.path / "extra.csv").write_text("a,b\n1,2\n")
    dvc(traced, "add", "-q", "extra.csv")
    (added,) = objects(traced) - before
    assert added not in {one.path for one in collect(traced.path).garbage}


def test_nothing_is_freed_while_something_runs(traced: Checkout):
    run_with(traced, "dpo.launch.timeout_hours=2")
    run_with(traced, "dpo.launch.timeout_hours=3")
    before = objects(traced)
    for name in ("run.lock", "dpo/lock", "sweeps/one/lock"):
        with stage_lock(traced.path / ".work" / name), pytest.raises(TunelineError, match="Nothing was freed"):
            free(traced.path)
    holder = {str(traced.path / "models/dpo"): {"write": {"pid": os.getpid(), "cmd": "dvc repro"}}}
    (traced.path / ".dvc/tmp/rwlock").write_text(json.dumps(holder))
    with pytest.raises(TunelineError, match="DVC is at work"):
        free(traced.path)
    assert objects(traced) == before


def test_work_that_nothing_goes_on_with_goes_and_what_a_run_resumes_stays(traced: Checkout):
    stage = traced.path / ".work" / "dpo"
    (current,) = [path for path in stage.iterdir() if path.is_dir() and path.name != "toy"]
    (current / "checkpoint-2").mkdir()
    (stage / "lock").touch()
    other = stage / ("f" * 32)
    (other / "checkpoint-4").mkdir(parents=True)
    (other / "checkpoint-4" / "weights").write_bytes(bytes(1000))
    linked = other / "final"
    linked.mkdir()
    os.link(traced.path / "models/dpo/result.txt", linked / "result.txt")
    log = traced.path / ".prefect" / "server.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("old")
    os.utime(log, (0, 0))
    clone = traced.path / ".work/sweeps/one/line/.git"
    clone.mkdir(parents=True)
    (clone / "scratch_checkout").touch()
    found = {one.path: one for one in collect(traced.path).garbage}
    assert found[other].size == 1000  # the other file has a name elsewhere
    assert set(found) == {other, stage / "toy", log, clone.parent}
    free(traced.path)
    assert (current / "checkpoint-2").is_dir()
    assert not other.exists()
    assert not clone.exists()
    assert (traced.path / "models/dpo/result.txt").is_file()


def test_what_must_be_kept_has_to_be_known(traced: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TunelineError, match="not known which models are registered"):
        collect(traced.path)
    monkeypatch.undo()
    shutil.move(traced.path / ".dvc/cache", tmp_path / "shared")
    dvc(traced, "cache", "dir", "--local", str(tmp_path / "shared"))
    with pytest.raises(TunelineError, match="others may need"):
        collect(traced.path)


def test_nothing_is_freed_where_git_does_not_say_what_its_branches_need(traced: Checkout):
    tree = git(traced.path, "rev-parse", "HEAD^{tree}")
    (traced.path / ".git/objects" / tree[:2] / tree[2:]).unlink()
    with pytest.raises(TunelineError, match="not known what its branches and tags need; nothing was freed"):
        free(traced.path)
    free(traced.path, Keeping(history="none"))


def test_dvc_lock_of_a_dead_run_does_not_stop_it(traced: Checkout):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    holder = {str(traced.path / "models/dpo"): {"write": {"pid": done.pid, "cmd": "dvc repro"}}}
    (traced.path / ".dvc/tmp/rwlock").write_text(json.dumps(holder))
    unneeded = traced.path / ".work" / "dpo" / ("f" * 32)
    unneeded.mkdir()
    (unneeded / "log.txt").write_text("of a run that nothing goes on with")
    (unneeded.parent / "lock").touch()
    free(traced.path)
    assert not unneeded.exists()
