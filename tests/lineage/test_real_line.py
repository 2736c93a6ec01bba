"""A model that was really trained is traced, verified and made again: the line of tests/stages."""

from pathlib import Path

import pytest

from tasks.lineage import trace
from tasks.reproduction import reproduce
from tasks.verification import verify
from tests.stages.checkouts import Checkout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


def test_a_trained_model_is_made_again_bit_for_bit(trained: Checkout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(trained.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lineage = trace(trained.root, "tiny-sft@challenger")
    assert [step.record.stage for step in lineage.steps] == ["prepare", "sft"]
    assert {source.seed for source in lineage.steps[0].sources if source.role != "packages"} == {3}
    assert [Path(one.path).name for one in lineage.steps[1].weights] == ["model.safetensors"]
    assert lineage.steps[1].weights[0].sha256
    assert verify(trained.root, "tiny-sft@challenger").mismatches == []
    done = reproduce(trained.root, "tiny-sft@challenger", say=lambda line: None)
    assert done.obstacles == []
    assert done.differences == []
    assert done.is_equal
