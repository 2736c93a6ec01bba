"""Two processes (gloo) give PPO's steps, metrics and evaluation of one."""

import pytest
from torch.testing import assert_close

from tests.trainers.test_online_processes import trained

OWN = {
    "num_generations": 4, "num_mini_batches": 2, "num_ppo_epochs": 2, "max_steps": 5, "use_score_scaling": True,
    "adap_kl_ctrl": True, "target": 0.1, "horizon": 100, "missing_eos_penalty": 0.5, "whiten_rewards": True,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        OWN,
        {**OWN, "value_model": True, "critic_warmup_steps": 1, "target_kl": 0.01},
        {**OWN, "lora": True},
    ],
    ids=["head", "model", "adapter"],
)
def test_two_processes_match_one(options, tmp_path):
    one, one_logs = trained("ppo", 1, tmp_path / "one", options)
    two, two_logs = trained("ppo", 2, tmp_path / "two", options)
    for name in one:
        assert_close(two[name], one[name], atol=1e-5, rtol=1e-5)
    for one_line, two_line in zip(one_logs, two_logs, strict=True):
        names = [
            name
            for name in one_line
            if not name.endswith(("runtime", "per_second", "preparation_time", "step_time", "eps"))
        ]
        assert set(names) <= two_line.keys()
        for name in names:
            assert two_line[name] == pytest.approx(one_line[name], rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_two_processes_resume_in_the_middle_of_a_generation(tmp_path):
    # four steps a generation; the process compares the resumed run with the whole
    trained("ppo", 2, tmp_path / "two", {**OWN, "save_strategy": "steps", "save_steps": 1})
