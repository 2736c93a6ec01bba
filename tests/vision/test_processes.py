"""Two processes (gloo) give the step and the evaluation of one, also where one of them has no images."""

import pytest
from torch.testing import assert_close

from tests.processes import outcome_of


def trained(method, num_processes, folder):
    per_device = str(4 // num_processes // 2)
    return outcome_of(num_processes, "tests.vision.two_processes", method, per_device, folder=folder, timeout=300)


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
