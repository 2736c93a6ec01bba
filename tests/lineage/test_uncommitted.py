"""What was not committed is recorded with a run: as a patch of what stages read, bounded, and never with a secret."""

import subprocess
from pathlib import Path

import pytest

from stages import uncommitted as module
from stages.secrets import holds_secret, without_secrets
from stages.uncommitted import uncommitted
from tests.lineage.checkouts import git

KEY = "q8Zk3vPw72LmXc90TyBn41Rd"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(
        "stages: {sft: {cmd: a, deps: [code.py, '${files.reward_1}', data/train.jsonl, models/base]},\n"
        "  dpo: {cmd: a, deps: [reports/sft/metrics.json], metrics: [reports/dpo/metrics.json: {cache: false}]},\n"
        "  prepare: {cmd: a, metrics: [reports/sft/metrics.json]}}\n"
    )
    (tmp_path / "params.yaml").write_text("files: {reward_1: mine.py}\n")
    (tmp_path / "code.py").write_text("one = 1\n")
    (tmp_path / ".gitignore").write_text("params.yaml\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Start"]):
        git(tmp_path, *command)
    return tmp_path


def test_nothing_changed_is_said(checkout: Path):
    (checkout / "params.yaml").write_text("files: {reward_1: code.py}\nseed: 2\n")  # a run writes it
    (checkout / "reports/sft").mkdir(parents=True)
    (checkout / "reports/sft/metrics.json").write_text("{}\n")  # what another stage made
    (checkout / "data").mkdir()
    (checkout / "data/train.jsonl").write_text("{}\n")  # DVC's, not the patch's
    assert uncommitted(checkout).tag == "none"


def test_changes_and_files_that_git_does_not_know_come_back_by_the_patch(checkout: Path):
    (checkout / "code.py").write_text("one = 2\n")
    (checkout / "mine.py").write_text("def reward(): return 1\n")
    before = git(checkout, "count-objects", "-v"), git(checkout, "status", "--porcelain")
    changes = uncommitted(checkout)
    assert changes.tag == "uncommitted.patch"
    assert (git(checkout, "count-objects", "-v"), git(checkout, "status", "--porcelain")) == before
    git(checkout, "checkout", "-q", "code.py")
    (checkout / "mine.py").unlink()
    subprocess.run(["git", "apply", "-"], cwd=checkout, input=changes.patch, check=True)
    assert (checkout / "code.py").read_text() == "one = 2\n"
    assert (checkout / "mine.py").read_text() == "def reward(): return 1\n"


def test_a_file_that_is_gone_is_gone_by_the_patch(checkout: Path):
    (checkout / "code.py").unlink()
    patch = uncommitted(checkout).patch
    git(checkout, "checkout", "-q", "code.py")
    subprocess.run(["git", "apply", "-"], cwd=checkout, input=patch, check=True)
    assert not (checkout / "code.py").exists()


@pytest.mark.parametrize(
    "line",
    [
        f"api_key = '{KEY}'",
        "AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "url = 'https://user:pass1234@host/'",
        "hf_abcdefghijklmnopqrstuvwxyz",
    ],
)
def test_what_looks_like_a_secret_is_left_out_and_that_is_said(checkout: Path, line: str):
    (checkout / "code.py").write_text(f"one = 2\n# {line}\n")
    changes = uncommitted(checkout)
    assert changes.patch == b""
    assert changes.tag == "left out: code.py may hold a secret"


def test_the_value_of_a_variable_that_is_named_as_a_secret_is_one(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "plain-looking words")
    (checkout / "code.py").write_text("say('plain-looking words')\n")
    assert "secret" in uncommitted(checkout).tag
    assert without_secrets("sent plain-looking words to s3://a:bcd@host/x") == "sent *** to s3://***@host/x"
    monkeypatch.setenv("OTHER_TOKEN", "plain-looking words and more")
    assert without_secrets("sent plain-looking words and more") == "sent ***"


def test_ordinary_code_is_no_secret():
    for line in (
        'eos_token = "<|im_end|>"',
        'token: str = "default-name-of-a-token"',
        "https://host:80/path",
        "key = 3",
    ):
        assert not holds_secret(line.encode())


def test_too_much_is_left_out(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LARGEST_PATCH", 1000)
    (checkout / "code.py").write_text("one = 2\n" * 1000)
    assert uncommitted(checkout).tag == "left out: over 1 kB in 1 files"


def test_without_a_commit_or_git_the_run_goes_on(tmp_path: Path):
    (tmp_path / "dvc.yaml").write_text("stages: {sft: {cmd: a, deps: [code.py]}}\n")
    (tmp_path / "code.py").write_text("one = 1\n")
    assert uncommitted(tmp_path).tag.startswith("left out: ")
