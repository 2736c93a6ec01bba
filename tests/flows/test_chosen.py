"""Which stages a run is about: of those that are named none is passed over, and none reads what is out of date."""

import pytest

from flows.chosen import chosen_plans
from tasks.graph import StagePlan
from tuneline.errors import ConfigError, TunelineError

PLANS = [
    StagePlan("prepare", (), (), ()),
    StagePlan("sft", ("prepare",), ("sft.training.seed: 1 -> 2",), ()),
    StagePlan("dpo", ("prepare", "sft"), (), ("sft",)),
]


def names(only: list[str] | None) -> list[str]:
    return [plan.name for plan in chosen_plans(PLANS, only)]


def test_they_keep_the_order_of_the_line():
    assert names(None) == ["prepare", "sft", "dpo"]
    assert names(["dpo", "sft"]) == ["sft", "dpo"]


def test_a_name_that_is_no_stage_is_an_error():
    with pytest.raises(ConfigError, match="only=dop: the line has no such stage; there are prepare, sft,"):
        names(["sft", "dop"])


def test_a_stage_that_reads_what_is_out_of_date_is_not_run_alone():
    with pytest.raises(TunelineError, match="dpo is made from what sft left, which is out of date"):
        names(["dpo"])
    assert names(["sft"]) == ["sft"]
