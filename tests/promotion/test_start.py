"""A line that starts from a version of the registry: looked up, fetched from DVC's cache, hashed when it is loaded."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from stages.loading import load_config
from stages.start import START, START_RECORD, folder_hash, registry_place, verify_start
from tasks.graph import plan_stages
from tasks.promotion import promote
from tasks.registry import RegistryError
from tasks.rollback import roll_back
from tasks.start import fetch_start
from tests.promotion.conftest import ROOT, TinyLine, ToyLine
from tuneline.errors import ConfigError, ModelError

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
FROM_CHAMPION = "model.name_or_path=models:/toy@champion"


def hash_of(lock, path):
    return next(out["md5"] for stage in lock["stages"].values() for out in stage["outs"] if out["path"] == path)


def test_an_address_names_a_version_or_an_alias():
    assert registry_place("models:/line@champion") == ("line", "", "champion")
    assert registry_place("models:/line/12") == ("line", "12", "")
    for wrong in ("models:/line", "models:/line@", "models:/line/x", "models:/@champion", "models:/a/1@b"):
        with pytest.raises(ValueError, match="names no version"):
            registry_place(wrong)


def test_a_config_tells_a_wrong_address_and_depends_on_the_folder_of_a_right_one(toys: ToyLine):
    with pytest.raises(ConfigError, match="'models:/toy' names no version"):
        load_config(toys.path / "toy.yaml", ["model.name_or_path=models:/toy"], root=ROOT)
    assert load_config(toys.path / "toy.yaml", [FROM_CHAMPION], root=ROOT).files["model"] == START


def test_a_moved_alias_makes_the_stages_out_of_date_and_an_unmoved_one_does_not(toys: ToyLine):
    promote(toys.path)
    config = load_config(toys.path / "toy.yaml", [FROM_CHAMPION], root=ROOT)
    fetch_start(toys.path, config)
    lock = yaml.safe_load((toys.path / "dvc.lock").read_text())
    assert folder_hash(toys.path / START) == hash_of(lock, "models/dpo")
    verify_start(toys.path)

    toys.repro(FROM_CHAMPION)
    fetch_start(toys.path, config)
    assert all(plan.up_to_date for plan in plan_stages(toys.path))
    toys.repro(FROM_CHAMPION, "dpo.launch.timeout_hours=0.8")
    assert promote(toys.path).alias_moved
    fetch_start(toys.path, config)
    plans = {plan.name: plan for plan in plan_stages(toys.path)}
    assert plans["sft"].reasons == ("models/start changed",)
    roll_back(toys.path)
    fetch_start(toys.path, config)
    assert all(plan.up_to_date for plan in plan_stages(toys.path))


def test_without_mlflow_or_the_version_or_its_bytes_the_reason_is_told(toys: ToyLine, monkeypatch):
    config = load_config(toys.path / "toy.yaml", [FROM_CHAMPION], root=ROOT)
    with pytest.raises(RegistryError, match="has no alias champion of toy"):
        fetch_start(toys.path, config)
    promote(toys.path)
    shutil.rmtree(toys.path / ".dvc" / "cache" / "files")
    with pytest.raises(ModelError, match="DVC's cache lacks the list of its files"):
        fetch_start(toys.path, config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"MLflow at http://127\.0\.0\.1:9 cannot find toy@champion"):
        fetch_start(toys.path, config)


def test_damaged_bytes_in_the_cache_are_not_fetched(toys: ToyLine):
    promote(toys.path)
    cache = toys.path / ".dvc" / "cache" / "files" / "md5"
    md5 = hash_of(yaml.safe_load((toys.path / "dvc.lock").read_text()), "models/dpo")
    (entry,) = json.loads((cache / md5[:2] / md5[2:]).read_text())
    place = cache / entry["md5"][:2] / entry["md5"][2:]
    place.chmod(0o644)
    place.write_text("9.9")
    with pytest.raises(ModelError, match="is damaged"):
        fetch_start(toys.path, load_config(toys.path / "toy.yaml", [FROM_CHAMPION], root=ROOT))
    assert not (toys.path / START).exists()


def test_a_stage_loads_the_version_and_refuses_what_was_changed_since(line: TinyLine):
    shutil.copytree(line.root / "models" / "sft", line.root / START)
    record = {"uri": "models:/tiny@champion", "model": "tiny", "version": "3", "md5": folder_hash(line.root / START)}
    (line.root / START_RECORD).parent.mkdir(exist_ok=True)
    (line.root / START_RECORD).write_text(json.dumps(record))
    line.configure("model.init=null", "model.name_or_path=models:/tiny@champion")
    line.run("prepare")
    assert json.loads((line.root / "models" / "base" / "reference.json").read_text())["name_or_path"] == START
    assert (line.run("sft") / "final" / "model.safetensors").is_file()
    with (line.root / START / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ModelError, match=r"models:/tiny@champion \(version 3 of tiny\) refers"):
        line.run("sft")


def test_bytes_that_the_cache_lacks_come_from_the_default_remote(toys: ToyLine, tmp_path):
    for command in (["remote", "add", "-q", "-d", "store", str(tmp_path / "store")], ["push", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=toys.path, env=toys.env, check=True)
    promote(toys.path)
    shutil.rmtree(toys.path / ".dvc" / "cache" / "files")
    fetch_start(toys.path, load_config(toys.path / "toy.yaml", [FROM_CHAMPION], root=ROOT))
    verify_start(toys.path)
