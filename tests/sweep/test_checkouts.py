"""Scratch checkouts of a toy line: what they share, what they keep apart, what they leave."""

import shutil
import subprocess
import sys

import pytest

from tasks.checkouts import checkout_environment, scratch_checkout
from tuneline.errors import TunelineError


def git(folder, *arguments):
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def repro(root, made, env):
    env = {**env, **{k: v for k, v in checkout_environment(root, made).items() if k.startswith("MLFLOW")}}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=made, env=env, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_scratch_checkout_restores_what_the_first_one_has_computed(checkout, tmp_path):
    folder = tmp_path / "scratch"
    made = scratch_checkout(checkout.path, folder)
    assert made.is_relative_to(folder)
    assert not (made / "models").exists()
    shutil.copy(checkout.path / "params.yaml", made)
    shown = repro(checkout.path, made, checkout.env)
    assert "Running stage" not in shown
    assert (made / "models/dpo/result.txt").read_text() == (checkout.path / "models/dpo/result.txt").read_text()


def test_changes_to_tracked_files_come_along_and_again(checkout, tmp_path):
    toy = checkout.path / "toy.yaml"
    toy.write_text(toy.read_text() + "seed: 3\n")
    made = scratch_checkout(checkout.path, tmp_path / "scratch")
    assert (made / "toy.yaml").read_text() == toy.read_text()
    (made / ".work").mkdir()
    (made / ".work" / "kept").touch()
    (made / "toy.yaml").write_text("mine\n")
    assert scratch_checkout(checkout.path, tmp_path / "scratch") == made
    assert (made / "toy.yaml").read_text() == "mine\n"  # nothing has changed, so nothing is touched
    toy.write_text(toy.read_text() + "# more\n")
    scratch_checkout(checkout.path, tmp_path / "scratch")
    assert (made / "toy.yaml").read_text() == toy.read_text()
    assert (made / ".work" / "kept").exists()


def test_files_that_were_added_and_not_committed_come_along_each_time(checkout, tmp_path):
    added = checkout.path / "added.yaml"
    added.write_text("one: 1\n")
    git(checkout.path, "add", "added.yaml")
    made = scratch_checkout(checkout.path, tmp_path / "scratch")
    added.write_text("two: 2\n")
    assert scratch_checkout(checkout.path, tmp_path / "scratch") == made
    assert (made / "added.yaml").read_text() == "two: 2\n"
    git(checkout.path, "rm", "-q", "--force", "added.yaml")
    scratch_checkout(checkout.path, tmp_path / "scratch")
    assert not (made / "added.yaml").exists()


def test_one_that_was_killed_while_it_was_made_is_made_anew(checkout, tmp_path):
    made = scratch_checkout(checkout.path, tmp_path / "scratch")
    (made / ".git/scratch_checkout").unlink()
    (made / "toy.yaml").unlink()
    assert scratch_checkout(checkout.path, tmp_path / "scratch") == made
    assert (made / "toy.yaml").is_file()
    assert (made / ".dvc/config.local").stat().st_mode & 0o077 == 0


def test_a_revision_is_taken_as_it_was_committed(checkout, tmp_path):
    first = git(checkout.path, "rev-parse", "HEAD")
    toy = checkout.path / "toy.yaml"
    before = toy.read_text()
    toy.write_text(before + "seed: 3\n")
    git(checkout.path, "commit", "-qam", "Second")
    toy.write_text("not this")
    made = scratch_checkout(checkout.path, tmp_path / "scratch", first)
    assert (made / "toy.yaml").read_text() == before
    with pytest.raises(TunelineError, match="knows no revision nothing-of-the-kind"):
        scratch_checkout(checkout.path, tmp_path / "other", "nothing-of-the-kind")


def test_removing_the_folder_leaves_nothing_behind(checkout, tmp_path):
    made = scratch_checkout(checkout.path, tmp_path / "scratch")
    shutil.copy(checkout.path / "params.yaml", made)
    repro(checkout.path, made, checkout.env)
    assert not (made / ".dvc/cache").exists()
    assert list((tmp_path / "scratch").rglob(".dvc-site-cache/repo/*"))  # DVC's state of this checkout lies within it
    shutil.rmtree(tmp_path / "scratch")
    assert git(checkout.path, "worktree", "list").count("\n") == 0
    assert git(checkout.path, "status", "--porcelain", "toy.yaml", "dvc.yaml") == ""


def test_sources_that_git_does_not_track_are_linked(checkout, tmp_path):
    (checkout.path / "raw").mkdir()
    (checkout.path / "raw" / "pairs.jsonl").write_text("{}\n")
    outside = tmp_path / "outside.jsonl"
    outside.write_text("[]\n")
    (checkout.path / "models/start").mkdir()
    files = ["raw/pairs.jsonl", "../outside.jsonl", "toy.jsonl", "not/there", str(outside)]
    files += ["models/dpo", "reports/dpo/metrics.json", "models/start"]  # which the clone makes or fetches for itself
    made = scratch_checkout(checkout.path, tmp_path / "scratch", files=files)
    assert (made / "raw/pairs.jsonl").read_text() == "{}\n"
    assert (made / "../outside.jsonl").resolve() == outside
    assert not (made / "toy.jsonl").is_symlink()
    assert not (made / "models").exists()
    assert not (made / "reports").exists()


def test_a_remote_with_a_relative_path_stays_the_same_remote(checkout, tmp_path):
    dvc = [sys.executable, "-m", "dvc", "remote"]
    subprocess.run([*dvc, "add", "-q", "-d", "store", "../store"], cwd=checkout.path, env=checkout.env, check=True)
    made = scratch_checkout(checkout.path, tmp_path / "scratch")
    listed = subprocess.run([*dvc, "list"], cwd=made, env=checkout.env, capture_output=True, text=True, check=True)
    assert str(tmp_path / "store") in listed.stdout
