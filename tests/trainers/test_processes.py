"""Two processes (gloo) give the step, the metrics and the evaluation of one."""

import pytest
from torch.testing import assert_close

from tests.processes import outcome_of


def trained(method, num_processes, folder):
    return outcome_of(
        num_processes, "tests.trainers.two_processes", method, str(8 // num_processes // 2), folder=folder
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "kto", "bco", "orpo", "prm"])
def test_two_processes_match_one(method, tmp_path):
    one, one_logs = trained(method, 1, tmp_path / "one")
    two, two_logs = trained(method, 2, tmp_path / "two")
    for name in one:
        assert_close(two[name], one[name], atol=1e-5, rtol=1e-5)
    for one_line, two_line in zip(one_logs, two_logs, strict=True):
        for name, value in one_line.items():
            if method in ("dpo", "orpo") and name == "eval_loss":
                continue  # its likelihood is a mean over the tokens of an evaluation batch
            if method == "kto" and name in ("eval_loss", "eval_kl"):
                continue  # the divergence is estimated within an evaluation batch
            if name == "rewards/accuracies" and one_line is one_logs[0]:
                continue  # policy and reference are still the same, and rounding decides which side is ahead
            if not name.endswith(("runtime", "per_second", "preparation_time")):
                assert two_line[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
