"""Two processes (gloo) give the step and the evaluation of one, also where one of them has no images."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close


def trained(method, num_processes, folder):
    folder.mkdir()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}",
        "-m", "tests.vision.two_processes", method, str(4 // num_processes // 2), str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "weights.safetensors"), json.loads((folder / "logs.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_two_processes_match_one(method, tmp_path):
    one, one_logs = trained(method, 1, tmp_path / "one")
    two, two_logs = trained(method, 2, tmp_path / "two")
    for name in one:
        assert_close(two[name], one[name], atol=1e-5, rtol=1e-5)
    for one_line, two_line in zip(one_logs, two_logs, strict=True):
        for name in {"loss", "eval_loss", "num_tokens"} & one_line.keys():
            assert two_line[name] == pytest.approx(one_line[name], rel=1e-4, abs=1e-5), name
