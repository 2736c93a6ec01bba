"""Two processes (gloo) train policy and value function as one does, in each form, with checkpointed layers."""

import pytest
from torch.testing import assert_close

from tests.processes import launch, outcome_of


def trained(form, num_processes, folder):
    per_device = str(4 // num_processes)
    return outcome_of(num_processes, "tests.values.two_processes", form, per_device, folder=folder)


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
