"""Two processes (gloo) give the steps, the metrics and the evaluation of one, with groups spread over both."""

import json

import pytest
from torch.testing import assert_close

from tests.processes import outcome_of


def trained(method, num_processes, folder, options):
    per_device = str(4 // num_processes)  # a group of four is spread over two processes
    arguments = (method, per_device, json.dumps(options))
    return outcome_of(num_processes, "tests.trainers.online_two_processes", *arguments, folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("grpo", {"beta": 0.1, "num_iterations": 2}),
        ("grpo", {"dynamic_sampling": True, "top_entropy_quantile": 0.5, "entropy_coef": 0.1}),
        ("grpo", {"beta": 0.1, "lora": True}),
        ("rloo", {"beta": 0.1, "mask_truncated_completions": True}),
    ],
    ids=str,
)
def test_two_processes_match_one(method, options, tmp_path):
    one, one_logs = trained(method, 1, tmp_path / "one", options)
    two, two_logs = trained(method, 2, tmp_path / "two", options)
    for name in one:
        assert_close(two[name], one[name], atol=1e-5, rtol=1e-5)
    for one_line, two_line in zip(one_logs, two_logs, strict=True):
        names = [
            name for name in one_line if not name.endswith(("runtime", "per_second", "preparation_time", "step_time"))
        ]
        assert set(names) <= two_line.keys()
        if "entropy_coef" in options:
            names = [name for name in names if name != "eval_loss"]  # its bonus is a mean over the tokens of a batch
        for name in names:
            assert two_line[name] == pytest.approx(one_line[name], rel=1e-4, abs=1e-5), name
    assert json.loads((tmp_path / "two" / "asked.json").read_text()) == json.loads(
        (tmp_path / "one" / "asked.json").read_text()
    )


@pytest.mark.slow
def test_two_processes_resume_in_the_middle_of_a_generation(tmp_path):
    # four micro-batches a generation, two of them a step; the process compares the resumed run with the whole
    trained("grpo", 2, tmp_path / "two", {"steps_per_generation": 4, "save_strategy": "steps", "save_steps": 1})
