"""Two processes (gloo) train policy and value function as one does, in each form, with checkpointed layers."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close


def launch(num_processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}", "-m"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def trained(form, num_processes, folder):
    folder.mkdir()
    launch(num_processes, "tests.values.two_processes", form, str(4 // num_processes), str(folder), "checkpointing")
    return load_file(folder / "weights.safetensors"), json.loads((folder / "logs.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["head", "model", "adapter"])
def test_two_processes_match_one(form, tmp_path):
    one, one_logs = trained(form, 1, tmp_path / "one")
    two, two_logs = trained(form, 2, tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        assert_close(two[name], one[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert len(one_logs) == len(two_logs) == 4
    for one_line, two_line in zip(one_logs, two_logs, strict=True):
        for name in ("loss", "loss/value_avg", "loss/policy_avg", "grad_norm"):
            assert two_line[name] == pytest.approx(one_line[name], rel=1e-4, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "fsdp2"])
def test_a_sharded_module_answers_as_a_whole_one(kind):
    launch(2, "tests.values.sharded", kind)
