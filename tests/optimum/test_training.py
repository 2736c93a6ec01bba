"""The trainers end at the policy that enumeration gives, and the page says what they did."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from examples.analytic_optimum import mean, table
from examples.analytic_optimum_settings import BETA, LIMIT, SETTINGS
from examples.analytic_optimum_task import all_logps
from examples.analytic_optimum_training import TRAINERS, make_trainer, run

DOCS = Path(__file__).parents[2] / "docs"
BY_NAME = {setting.name: setting for setting in SETTINGS}


@pytest.mark.parametrize("method", TRAINERS)
def test_the_trainer_of_an_online_method_takes_the_task(method, tmp_path):
    setting = next(one for one in SETTINGS if one.method == method)
    trainer = make_trainer(setting, setting.task.make_reference(), output_dir=str(tmp_path))
    assert type(trainer) is TRAINERS[method][0]
    assert trainer.processing_class is setting.task.tokenizer


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [setting.name for setting in SETTINGS if setting.is_exact])
def test_training_ends_at_the_optimum(name):
    outcome = run(BY_NAME[name])
    assert outcome.distances.mean() < LIMIT
    assert outcome.curve[0][1] > 0.4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_penalty_by_token_leads_where_its_loss_says():
    outcome = run(BY_NAME["grpo-token"])
    assert outcome.expected_distances.mean() > 2 * LIMIT
    assert abs(outcome.distances.mean() - outcome.expected_distances.mean()) < LIMIT


def test_the_penalty_in_the_reward_is_the_log_ratio_of_the_completion(tmp_path):
    setting = BY_NAME["grpo-reward"]
    task, model = setting.task, setting.task.make_reference()
    ref_logps = all_logps(model, task)
    trainer = make_trainer(setting, model, output_dir=str(tmp_path))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)  # away from the reference
    logps = all_logps(model, task)
    scored = trainer.collect([{"prompt": "ab"}] * 6 + [{"prompt": "bb"}] * 6, 6, ("by hand",))
    ids = [task.number_of[tuple(one.rollout.completion_ids)] for one in scored]
    prompts = [1] * 6 + [3] * 6
    penalized = (task.rewards - BETA * (logps - ref_logps))[prompts, ids].view(2, 6)
    expected = (penalized - penalized.mean(1, keepdim=True)).flatten()
    found = torch.tensor([one.advantage for one in scored], dtype=torch.float64)
    assert_close(found, expected.double(), atol=1e-4, rtol=1e-4)


def test_the_page_has_the_table_of_the_file():
    rows = json.loads((DOCS / "analytic-optimum.json").read_text())
    assert set(rows) == set(BY_NAME)
    assert table(rows) in (DOCS / "analytic-optimum.md").read_text()
    for name, row in rows.items():
        if BY_NAME[name].is_exact:
            assert mean(row["from_optimum"]) < LIMIT
