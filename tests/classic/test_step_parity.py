"""A whole step against the same step written plainly, in float64 and with padding (`plain_step`)."""

import pytest
import torch
from torch.testing import assert_close

from tests.classic.models import some_batch, step_trainer, with_value_head
from tests.classic.plain_step import plain_step


def assert_like_the_plain_step(trainer, before, reference, batch, stats, *, lr, epochs=1, masks=None, scores=None):
    queries, responses, given, _ = batch
    expected, numbers = plain_step(
        before,
        reference,
        queries,
        responses,
        given if scores is None else scores,
        masks,
        config=trainer.config,
        kl_coef=trainer.config.init_kl_coef,
        epochs=epochs,
        lr=lr,
    )
    for name, number in numbers.items():
        assert stats[name] == pytest.approx(number, rel=1e-5, abs=1e-5), name
    changes = {n: p.detach().double() - before.get_parameter(n).double() for n, p in trainer.model.named_parameters()}
    for name, change in changes.items():
        wanted = expected.get_parameter(name).detach() - before.get_parameter(name).double()
        # the change is lr times the gradient; both sides of a float32 weight are rounded
        assert_close(
            change / lr, wanted / lr, rtol=1e-5, atol=1e-5 * max(1.0, wanted.abs().max().item() / lr), msg=name
        )


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
@pytest.mark.parametrize("kl_penalty", ["kl", "abs", "mse", "full"])
def test_a_step_is_the_plain_step(kl_penalty, architecture):
    batch = some_batch()
    reference = with_value_head(architecture, seed=5)
    trainer = step_trainer(
        with_value_head(architecture),
        ref_model=with_value_head(architecture, seed=5),
        lr=1.0,
        batch_size=4,
        mini_batch_size=4,
        ppo_epochs=1,
        kl_penalty=kl_penalty,
    )
    stats = trainer.step(*batch[:2], list(batch[2]))
    assert_like_the_plain_step(trainer, with_value_head(architecture), reference, batch, stats, lr=1.0)


@pytest.mark.parametrize("mini_batch_size", [1, 2, 4])
def test_a_step_is_the_same_however_an_update_is_cut(mini_batch_size):
    batch = some_batch()
    trainer = step_trainer(
        ref_model=with_value_head(seed=5),
        lr=1.0,
        batch_size=4,
        mini_batch_size=mini_batch_size,
        gradient_accumulation_steps=4 // mini_batch_size,
        ppo_epochs=1,
        gamma=0.9,
        lam=0.7,
        whiten_rewards=True,
    )
    stats = trainer.step(*batch[:3], batch[3])
    before, reference = with_value_head(), with_value_head(seed=5)
    assert_like_the_plain_step(trainer, before, reference, batch, stats, lr=1.0, masks=batch[3])


def test_several_passes_with_clips_are_the_plain_passes():
    batch = some_batch()
    lr = 0.02
    trainer = step_trainer(
        ref_model=with_value_head(seed=5), lr=lr, batch_size=4, mini_batch_size=4, ppo_epochs=3, cliprange=0.02,
        cliprange_value=0.02, vf_coef=0.5,
    )  # fmt: skip
    stats = trainer.step(*batch[:3])
    assert stats["ppo/policy/clipfrac"] > 0
    assert stats["ppo/val/clipfrac"] > 0
    before, reference = with_value_head(), with_value_head(seed=5)
    assert_like_the_plain_step(trainer, before, reference, batch, stats, lr=lr, epochs=3)


def test_scores_are_scaled_normed_and_clipped_by_all_scores_so_far():
    batch = some_batch()
    scores = torch.tensor([1.0, 2.0, 3.0, 10.0])  # mean 4, unbiased deviation sqrt(50 / 3)
    trainer = step_trainer(
        ref_model=with_value_head(seed=5), lr=1.0, batch_size=4, mini_batch_size=4, ppo_epochs=1,
        use_score_scaling=True, use_score_norm=True, score_clip=1.0,
    )  # fmt: skip
    stats = trainer.step(*batch[:2], scores)
    scaled = ((scores.double() - 4) / (50 / 3) ** 0.5).clamp(-1, 1)
    assert scaled[-1] == 1
    before, reference = with_value_head(), with_value_head(seed=5)
    assert_like_the_plain_step(trainer, before, reference, batch, stats, lr=1.0, scores=scaled)


def test_the_second_batch_is_scaled_by_both():
    trainer = step_trainer(batch_size=4, mini_batch_size=4, ppo_epochs=1, use_score_scaling=True)
    batch = some_batch()
    trainer.step(*batch[:2], torch.tensor([0.0, 0.0, 2.0, 2.0]))
    stats = trainer.step(*batch[:2], torch.tensor([4.0, 4.0, 6.0, 6.0]))
    both = torch.tensor([0.0, 0.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0])
    assert stats["ppo/mean_scores"] == pytest.approx(5.0 / both.std().item())
