"""A run's identity is its command, the bytes that it reads and its settings: no more and no less."""

import hashlib
import subprocess
import sys

import pytest

from stages.identity import output_hashes, stage_identity
from tuneline.errors import StageError

PIPELINE = """
stages:
  train:
    cmd: echo made > out.txt
    deps: [data, "${files.source}"]
    params: [seed, train.rate, gates.accuracy]
    outs: [out.txt]
"""
PARAMS = "seed: 1\ntrain: {rate: 0.1, timeout: 3}\ngates: {accuracy: 0.6}\nfiles: {source: source.jsonl}\n"


@pytest.fixture
def line(tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.txt").write_text("rows")
    (tmp_path / "source.jsonl").write_text("{}")
    return tmp_path


def repro(line, *flags):
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", *flags], cwd=line, check=True)


def test_it_changes_with_inputs_settings_and_command_and_with_nothing_else(line):
    first = stage_identity("train", line)
    assert first.params == {"seed": 1, "train.rate": 0.1, "gates.accuracy": 0.6}
    assert set(first.inputs) == {"data", "source.jsonl"}

    # another limit is held against what was measured, and nothing is computed anew
    (line / "params.yaml").write_text(PARAMS.replace("timeout: 3", "timeout: 4").replace("0.6", "0.7"))
    (line / "data" / "rows.txt").touch()
    assert stage_identity("train", line).key == first.key

    keys = {first.key}
    for path, text in (
        ("params.yaml", PARAMS.replace("0.1", "0.2")),
        ("source.jsonl", "[]"),
        ("data/rows.txt", "other"),
        ("data/more.txt", "more"),
        ("dvc.yaml", PIPELINE.replace("made", "made anew")),
    ):
        (line / path).write_text(text)
        keys.add(stage_identity("train", line).key)
    assert len(keys) == 6


def test_it_is_forced_only_where_dvc_has_the_result(line):
    assert not stage_identity("train", line).is_forced
    repro(line)
    assert stage_identity("train", line).is_forced  # dvc would not have run it by itself
    assert output_hashes("train", line) == {"out.txt": hashlib.md5(b"made\n").hexdigest()}
    (line / "source.jsonl").write_text("[]")
    assert not stage_identity("train", line).is_forced
    (line / "source.jsonl").write_text("{}")
    subprocess.run(["rm", "-rf", ".dvc/cache", "out.txt"], cwd=line, check=True)
    assert not stage_identity("train", line).is_forced  # dvc runs it, as its result is lost


def test_an_input_that_is_missing_is_named(line):
    (line / "source.jsonl").unlink()
    with pytest.raises(StageError, match=r"train reads what is not there: source\.jsonl; run the stages before it"):
        stage_identity("train", line)
    with pytest.raises(StageError, match="DVC cannot read the stage tarin"):
        stage_identity("tarin", line)
