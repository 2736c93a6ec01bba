"""Settings for all tests: no network, no telemetry, few threads, a cache of their own."""

import os
import sys
import tempfile

import pytest

# Fixtures of the session that several folders use, made once for all of them.
from tests.flows.checkouts import checkout, prefect_home, template
from tests.lineage.checkouts import traced, traced_template
from tests.stages.checkouts import checkout_after_prepare, checkout_after_sft, prepared, trained

__all__ = [
    "checkout",
    "checkout_after_prepare",
    "checkout_after_sft",
    "prefect_home",
    "prepared",
    "template",
    "traced",
    "traced_template",
    "trained",
]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_CACHE = tempfile.TemporaryDirectory(prefix="tuneline-tests-")
os.environ.setdefault("TUNELINE_CACHE", _CACHE.name)


@pytest.fixture(autouse=True)
def _mlflow_of_each_test():
    """MLflow writes the address it is given into the environment too, where the next test would read it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if os.environ.get("MLFLOW_TRACKING_URI") != before:
        sys.modules["mlflow"].set_tracking_uri(before)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
