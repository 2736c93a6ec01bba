"""A model's bytes lie in DVC's cache, once; MLflow refers to them."""

import hashlib

import mlflow
import pytest

from tests.flows.checkouts import Checkout
from tests.lineage.checkouts import WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_mlflow_holds_reports_and_refers_to_weights(traced: Checkout):
    client = mlflow.MlflowClient(f"sqlite:///{traced.path}/mlflow.db")
    versions = client.search_model_versions()
    assert {version.name for version in versions} == {"toy-sft", "toy-dpo"}
    for version in versions:
        assert version.source.startswith("models:/m-")
        assert version.tags["dvc.md5"].endswith(".dir")
    files = [path for name in ("mlruns", "mlartifacts") for path in (traced.path / name).rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".safetensors" or WEIGHTS in path.read_bytes()]
    assert sum(path.stat().st_size for path in files) < 100_000


def test_the_same_bytes_of_two_models_are_one_object(traced: Checkout):
    holders = [
        path for path in (traced.path / ".dvc/cache").rglob("*") if path.is_file() and WEIGHTS in path.read_bytes()
    ]
    md5 = hashlib.md5(WEIGHTS).hexdigest()
    assert [path.parent.name + path.name for path in holders] == [md5]
