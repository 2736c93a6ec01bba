"""The engine in the process, in a process of its own: vLLM's CPU build would slow down the one that tests."""

import json
import os
import subprocess

import pytest

from tests.vllm.environment import ROOT, SMALL, require_vllm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_it_draws_from_each_set_of_weights_that_it_is_handed(tmp_path):
    done = subprocess.run(
        [require_vllm(), "-m", "tests.vllm.in_process", tmp_path],
        env={**os.environ, **SMALL, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    differences = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(differences) == 4
    assert max(differences) < 1e-4, differences
