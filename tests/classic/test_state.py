"""A step trainer that was stopped goes on to the bit."""

import numpy as np
import pytest
import torch

from tests.classic.models import some_batch, step_trainer, with_value_head
from tests.classic.test_step import lora
from tests.models import tiny_causal_lm
from tuneline.classic.length_sampler import LengthSampler
from tuneline.errors import ConfigError, DataError

OPTIONS = dict(
    batch_size=4, mini_batch_size=2, ppo_epochs=2, learning_rate=1e-2, target=0.5, use_score_scaling=True,
    use_score_norm=True,
)  # fmt: skip


def make(model=None):
    trainer = step_trainer(model, **OPTIONS)
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer.optimizer, lambda step: 0.9**step)
    return trainer


def run(trainer, num_steps):
    """What a loop does: draw, with lengths from Python's generator; score, with torch's; learn."""
    queries, sampler = some_batch()[0], LengthSampler(3, 8)
    reported = []
    for _ in range(num_steps):
        responses = trainer.generate(queries, sampler, return_prompt=False, do_sample=True, top_k=0)
        scores = [response.float().mean() / 50 + torch.rand(()) for response in responses]
        reported.append(trainer.step(queries, responses, scores))
    return reported


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        for name in a:
            if not name.startswith("time/"):
                assert np.array_equal(a[name], b[name]), name


@pytest.mark.parametrize("make_model", [with_value_head, lambda: lora(tiny_causal_lm())])
def test_a_resumed_run_is_the_whole_run_to_the_bit(make_model, tmp_path):
    whole = make(make_model())
    expected = run(whole, 4)

    first = make(make_model())
    run(first, 2)
    first.save_state(tmp_path)
    second = make(make_model())
    second.load_state(tmp_path)
    assert second.kl_ctl.value == first.kl_ctl.value != OPTIONS.get("init_kl_coef", 0.2)
    assert second.running.count == 8
    found = run(second, 2)

    assert_same(found, expected[2:])
    for (name, one), other in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert second.kl_ctl.value == whole.kl_ctl.value
    assert second.running.state_dict() == whole.running.state_dict()


def test_a_state_in_memory_does_not_move_with_the_trainer():
    trainer = make()
    run(trainer, 1)
    state = trainer.state_dict()
    expected = run(trainer, 2)
    trainer.load_state_dict(state)
    assert_same(run(trainer, 2), expected)


def test_a_state_of_another_trainer_is_refused(tmp_path):
    trainer = make()
    run(trainer, 1)
    with pytest.raises(ConfigError, match="learns in one of them alone"):
        make(lora(tiny_causal_lm())).load_state_dict(trainer.state_dict())
    with pytest.raises(ConfigError, match="one has an lr_scheduler"):
        step_trainer(**OPTIONS).load_state_dict(trainer.state_dict())
    with pytest.raises(DataError, match="is missing"):
        trainer.load_state(tmp_path)
