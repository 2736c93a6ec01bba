"""`tuneline verify` names what no longer is what was recorded."""

import shutil
from pathlib import Path

import pytest

from tasks.lineage_records import Records
from tasks.verification import verify
from tests.flows.checkouts import Checkout
from tuneline.errors import TunelineError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def problems(root: Path, target: str = "") -> dict[str, str]:
    return {mismatch.what: mismatch.problem for mismatch in verify(root, target).mismatches}


def test_after_a_run_all_matches(traced: Checkout):
    result = verify(traced.path)
    assert (result.mismatches, result.num_stages) == ([], 5)
    assert "All matches" in traced.call("verify")


def test_a_corrupted_cache_object_is_found_though_dvc_trusts_it(traced: Checkout):
    cache = Records(traced.path).cache
    md5 = cache.below(Records(traced.path).current["dpo"].outs["models/dpo"].md5, "result.txt")
    place = cache.path(md5)
    place.chmod(0o644)
    place.write_text("one bit is another")
    found = problems(traced.path)
    assert list(found) == ["models/dpo/result.txt"]
    assert "corrupted" in found["models/dpo/result.txt"]
    assert str(place) in found["models/dpo/result.txt"]


def test_a_changed_output_source_code_file_and_setting_are_each_named(traced: Checkout):
    root = traced.path
    (root / "models/sft/result.txt").write_text("changed by hand")
    (root / "models/dpo/more.txt").touch()
    shutil.rmtree(root / "models/reward")
    (root / "toy.jsonl").write_text("{}\n")
    with (root / "toy_stage.py").open("a") as code:
        code.write("# a word\n")
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("timeout_hours: 1.0", "timeout_hours: 5.0"))
    found = problems(root)
    assert found.pop("models/sft/result.txt").startswith("changed since: md5")
    assert found.pop("models/dpo/more.txt") == "added since"
    assert found.pop("models/reward").startswith("missing in the checkout")
    assert found.pop("toy.jsonl").startswith("changed since")
    assert found.pop("toy_stage.py").startswith("changed since")
    assert found.pop("sft.launch.timeout_hours") == "changed in params.yaml since: 1.0 -> 5.0"
    assert not found
    shown = traced.call("verify", exit_code=1)
    assert "toy.jsonl: changed since" in shown


def test_a_target_is_verified_with_what_it_was_made_from_alone(traced: Checkout):
    (traced.path / "models/reward/result.txt").write_text("changed by hand")
    assert problems(traced.path, "models:/toy-dpo/1") == {}
    assert list(problems(traced.path, "evaluate.loss")) == ["models/reward/result.txt"]
    with pytest.raises(TunelineError, match="made by no stage"):
        verify(traced.path, "toy.jsonl")


def test_a_lost_cache_object_is_told_and_the_output_still_compared(traced: Checkout):
    records = Records(traced.path)
    records.cache.path(records.current["dpo"].outs["models/dpo"].md5).unlink()
    found = problems(traced.path)
    assert list(found) == ["models/dpo"]
    assert "not in DVC's cache" in found["models/dpo"]
    (traced.path / "models/dpo/result.txt").write_text("changed by hand")
    assert len(verify(traced.path).mismatches) == 2
