"""Two processes (gloo) take the step, and report the numbers, that one takes with both of their batches."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close


def stepped(num_processes, folder):
    folder.mkdir()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}",
        "-m", "tests.classic.two_processes", str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "weights.safetensors"), json.loads((folder / "logs.json").read_text())


@pytest.mark.slow
def test_two_processes_match_one(tmp_path):
    one, one_logs = stepped(1, tmp_path / "one")
    two, two_logs = stepped(2, tmp_path / "two")
    for name in one:
        assert_close(two[name], one[name], atol=1e-5, rtol=1e-5)
    for one_line, two_line in zip(one_logs, two_logs, strict=True):
        for name, value in one_line.items():
            assert two_line[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
