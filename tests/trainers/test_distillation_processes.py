"""Two processes (gloo) give the steps, metrics and evaluation of one: distillation, and pairs that are judged."""

import pytest
from torch.testing import assert_close

from tests.processes import outcome_of


def trained(method, num_processes, folder):
    return outcome_of(
        num_processes, "tests.trainers.taught_two_processes", method, str(2 // num_processes), folder=folder
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["OnlineDPO", "XPO", "NashMD", "Distillation", "GKD"])
def test_two_processes_match_one(method, tmp_path):
    one, one_logs = trained(method, 1, tmp_path / "one")
    two, two_logs = trained(method, 2, tmp_path / "two")
    for name in one:
        assert_close(two[name], one[name], atol=1e-5, rtol=1e-5)
    # failures are a mean over processes; in the first step policy and reference differ by rounding alone
    unlike = ("runtime", "per_second", "preparation_time", "step_time", "judge/failures", "rewards/accuracies")
    for one_line, two_line in zip(one_logs, two_logs, strict=True):
        names = [name for name in one_line if not name.endswith(unlike)]
        assert set(names) <= two_line.keys()
        for name in names:
            assert two_line[name] == pytest.approx(one_line[name], rel=1e-4, abs=1e-5), name
