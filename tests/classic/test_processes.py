"""Two processes (gloo) take the step, and report the numbers, that one takes with both of their batches."""

import pytest
from torch.testing import assert_close

from tests.processes import outcome_of


def stepped(num_processes, folder):
    return outcome_of(num_processes, "tests.classic.two_processes", folder=folder)


@pytest.mark.slow
def test_two_processes_match_one(tmp_path):
    one, one_logs = stepped(1, tmp_path / "one")
    two, two_logs = stepped(2, tmp_path / "two")
    for name in one:
        assert_close(two[name], one[name], atol=1e-5, rtol=1e-5)
    for one_line, two_line in zip(one_logs, two_logs, strict=True):
        for name, value in one_line.items():
            assert two_line[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
