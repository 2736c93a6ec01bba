"""Which variants have which stages in common, and which of them may run at the same time."""

import pytest

from tasks.sweep_plan import Schedule, expected_seconds, num_units, shared_stages, stage_units
from tests.flows.checkouts import DVC_YAML, INPUTS, STAGE_YAML

SETTINGS = {"seed": 0, "prepare": {}, "sft": {}, "reward": {}, "dpo": {"beta": 0.1}, "evaluate": {}}


@pytest.fixture
def units(tmp_path):
    text = DVC_YAML + "".join(STAGE_YAML.replace("NAME", n).replace("INPUTS", i) for n, i in INPUTS.items())
    (tmp_path / "dvc.yaml").write_text(text)
    return lambda **changes: stage_units(tmp_path, {**SETTINGS, **changes})


def test_a_change_reaches_the_stage_and_those_that_read_what_it_makes(units):
    one, other = units(), units(dpo={"beta": 0.2})
    assert shared_stages([one, other]) == ["prepare", "sft", "reward"]
    assert num_units([one, other]) == 5 + 2
    assert shared_stages([one, units(seed=1)]) == []
    assert shared_stages([one, units(reward={"x": 1})]) == ["prepare", "sft", "dpo"]


def test_variants_that_share_what_is_not_computed_yet_wait_and_others_start(units):
    lines = {f"{beta}-{seed}": units(dpo={"beta": beta}, seed=seed) for beta in (1, 2) for seed in (0, 1)}
    schedule = Schedule(lines)
    assert [schedule.next() for _ in range(3)] == ["1-0", "1-1", None]
    for stage in ("prepare", "sft"):
        schedule.stage_done("1-0", stage)
    assert schedule.next() is None  # the reward model is computed at this moment
    schedule.stage_done("1-0", "reward")
    assert schedule.next() == "2-0"
    schedule.ended("1-1")  # failed: another computes what it did not
    assert schedule.next() == "2-1"


def test_expected_time_counts_shared_stages_once(units):
    seconds = {"prepare": 1.0, "sft": 10.0, "reward": 5.0, "dpo": 20.0, "evaluate": 2.0}
    lines = [units(), units(dpo={"beta": 0.2})]
    assert expected_seconds(lines, seconds, jobs=1) == 16 + 2 * 22
    assert expected_seconds(lines, seconds, jobs=4) == 38
    assert expected_seconds(lines, {**seconds, "dpo": None}, jobs=1) is None
