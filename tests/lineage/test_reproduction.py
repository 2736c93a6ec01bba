"""A version is made again from source, and compared bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages.hashes import file_hash, folder_md5
from tasks.lineage_records import Content, Records, StageRecord
from tasks.reproduction_compare import differences_of
from tests.flows.checkouts import Checkout
from tests.lineage.checkouts import git, register, repro

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def change_code(checkout: Checkout, line: str = "") -> None:
    code = checkout.path / "toy_stage.py"
    code.write_text(line + code.read_text().replace('b"toy weights"', 'b"better weights"'))


@pytest.mark.slow
def test_a_version_is_made_again_and_is_the_same(traced: Checkout):
    cache = {path for path in (traced.path / ".dvc/cache").rglob("*") if path.is_file()}
    runs = (traced.path / "mlflow.db").read_bytes()
    shown = traced.call("reproduce", "models:/toy-dpo/1")
    assert "The same bit for bit: all 9 files of prepare, sft, dpo" in shown
    assert {path for path in (traced.path / ".dvc/cache").rglob("*") if path.is_file()} == cache
    assert (traced.path / "mlflow.db").read_bytes() == runs
    assert not list((traced.path / ".work/reproductions").iterdir())
    assert traced.tries("dpo") == 0


@pytest.mark.slow
def test_uncommitted_changes_that_were_recorded_are_put_on_top(traced: Checkout):
    change_code(traced)
    repro(traced)
    register(traced, "dpo")
    git(traced.path, "checkout", "-q", "toy_stage.py")
    shown = traced.call("reproduce", "models:/toy-dpo/2")
    assert "with the recorded changes" in shown
    assert "The same bit for bit" in shown


@pytest.mark.slow
def test_what_was_not_recorded_is_said_and_what_differs_without_it(traced: Checkout):
    change_code(traced, "API_KEY = 'x7f3k29dkw83nfk2ls93k'\n")
    repro(traced)
    register(traced, "dpo")
    git(traced.path, "checkout", "-q", "toy_stage.py")
    shown = traced.call("reproduce", "models:/toy-dpo/2", exit_code=1)
    assert "cannot be reproduced exactly, because" in shown
    assert "toy_stage.py: changed since" in shown
    assert "Nothing was run" in shown
    shown = traced.call("reproduce", "models:/toy-dpo/2", "--anyway", "--keep", exit_code=1)
    assert "models/dpo/model.safetensors" in shown
    (found,) = (traced.path / ".work/reproductions").glob("*/checkout/*/dvc.yaml")
    assert (found.parent / "models/dpo/model.safetensors").read_bytes() == b"toy weights"
    holders = [
        path for path in traced.path.rglob("*") if path.is_file() and b"x7f3k29dkw83nfk2ls93k" in path.read_bytes()
    ]
    assert not [path for path in holders if ".dvc" not in path.parts]


def test_a_difference_is_told_by_tensor_by_metric_or_by_byte(traced: Checkout, tmp_path: Path):
    records = Records(traced.path)
    before, now = tmp_path / "before", tmp_path / "now" / "models" / "dpo"
    for folder, weight, accuracy in ((before, 1.0, 0.5), (now, 1.25, 0.75)):
        folder.mkdir(parents=True)
        save_file({"a": torch.ones(3), "b": torch.full((2,), weight)}, folder / "model.safetensors")
        lost = {"a": torch.full((1,), torch.nan), "b": torch.full((1,), torch.nan if weight == 1.25 else weight)}
        save_file(lost, folder / "lost.safetensors")
        (folder / "metrics.json").write_text(json.dumps({"accuracy": accuracy, "loss": 1}))
        (folder / "same.txt").write_text("same")
        (folder / "notes.txt").write_text(f"weight {weight:.2f}")
    (before / "gone.txt").touch()
    (now / "new.txt").touch()
    files = {path.name: file_hash(path) for path in before.iterdir()}
    listed = json.dumps([{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())], sort_keys=True)
    for md5, text in {
        folder_md5(files): listed.encode(),
        **{m: (before / n).read_bytes() for n, m in files.items()},
    }.items():
        place = records.cache.path(md5)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text)
    record = StageRecord("dpo", "", {}, {}, {"models/dpo": Content(folder_md5(files))})
    num_files, differences = differences_of(records, record, tmp_path / "now")
    assert num_files == 6
    assert {Path(one.path).name: one.text for one in differences} == {
        "gone.txt": "was not made",
        "lost.safetensors": "1 of 2 tensors differ, by nan at most (b)",
        "metrics.json": "1 of 2 metrics differ: accuracy 0.5 -> 0.75",
        "model.safetensors": "1 of 2 tensors differ, by 0.25 at most (b)",
        "notes.txt": "2 of 11 bytes differ",
        "new.txt": "was not there before",
    }
