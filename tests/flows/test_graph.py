"""DVC is asked what is out of date and why, under the settings in params.yaml or under others."""

from typing import Any

import pytest

from stages.loading import load_params
from tasks.graph import differences, plan_stages
from tests.flows.checkouts import Checkout
from tuneline.errors import StageError

# DVC 3.67 reads a value that pygtrie 2.5 deprecates (dvc/repo/trie.py).
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


def reasons(plans: list[Any]) -> dict[str, tuple[str, ...]]:
    return {plan.name: plan.reasons for plan in plans if plan.reasons}


def test_after_a_run_everything_is_up_to_date(checkout: Checkout):
    plans = plan_stages(checkout.path)
    assert [plan.name for plan in plans] == ["prepare", "sft", "reward", "dpo", "evaluate"]
    assert all(plan.up_to_date for plan in plans)
    assert plans[3].after == ("prepare", "sft")


def test_other_settings_reach_only_the_stages_that_read_them(checkout: Checkout):
    settings = load_params(checkout.path / "params.yaml").model_dump(mode="json")
    settings["dpo"]["training"] = {"beta": 0.3}
    before = (checkout.path / "params.yaml").read_bytes()
    plans = plan_stages(checkout.path, settings)
    assert reasons(plans) == {"dpo": ("dpo.training.beta: none -> 0.3",)}
    assert [plan.name for plan in plans if not plan.up_to_date] == ["dpo", "evaluate"]
    assert plans[4].follows == ("dpo",)
    assert (checkout.path / "params.yaml").read_bytes() == before


def test_a_missing_output_and_a_changed_input_are_named(checkout: Checkout):
    (checkout.path / "models" / "reward" / "result.txt").unlink()
    (checkout.path / "models" / "reward").rmdir()
    (checkout.path / "data" / "prepared" / "result.txt").write_text("changed by hand")
    assert reasons(plan_stages(checkout.path)) == {
        "prepare": ("data/prepared changed",),
        "reward": ("models/reward is missing",),
    }


def test_what_was_never_run_says_so(checkout: Checkout):
    (checkout.path / "dvc.lock").unlink()
    plans = plan_stages(checkout.path)
    assert {plan.reasons for plan in plans} == {("never run",)}


def test_a_broken_dvc_yaml_is_one_error(checkout: Checkout):
    (checkout.path / "dvc.yaml").write_text("stages: [")
    with pytest.raises(StageError, match="DVC cannot read the pipeline"):
        plan_stages(checkout.path)


def test_differences_go_down_to_single_settings():
    before = {"training": {"beta": 0.1, "seed": 1}, "peft": None}
    now = {"training": {"beta": 0.2, "seed": 1}, "peft": {"r": 16}}
    assert list(differences("dpo", before, now)) == ["dpo.training.beta: 0.1 -> 0.2", "dpo.peft: none -> {'r': 16}"]
