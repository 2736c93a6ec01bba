"""Losses of GRPO and RLOO against TRL, from rewards and log-probabilities to loss and gradient, float32, 1e-5."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from tests.parity.policy_sides import (
    INPUTS,
    LETTER,
    NUM_GENERATIONS,
    NUM_SEQUENCES,
    Grpo,
    Leaves,
    Options,
    Rollouts,
    assert_same_step,
    outcome,
    trl_trainer,
)
from tests.parity.sides import settings
from tuneline.advantages import combine_rewards, leave_one_out
from tuneline.losses.entropy import AdaptiveEntropyCoefficient
from tuneline.losses.mismatch import MISMATCH_MODES
from tuneline.losses.policy import CLIPPED_LOSS_TYPES, LOSS_TYPES, kl_penalty, policy_loss, token_weights
from tuneline.losses.sequences import sums_by_sequence

pytest.importorskip("trl", reason="parity is measured against TRL, which is not installed")


@pytest.fixture(scope="module")
def grpo(tmp_path_factory):
    return Grpo(tmp_path_factory.mktemp("grpo"))


@pytest.mark.parametrize(("loss_type", "level"), list(product(LOSS_TYPES, ("token", "sequence"))))
def test_every_loss_at_every_level(grpo, loss_type, level):
    grpo.compare(loss_type, level=level)


@pytest.mark.parametrize(("loss_type", "level"), list(product(CLIPPED_LOSS_TYPES, ("token", "sequence"))))
def test_two_sided_clipping(grpo, loss_type, level):
    grpo.compare(loss_type, level=level, delta=1.1)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_upper_bound(grpo, loss_type):
    grpo.compare(loss_type, epsilon_high=1.1 if loss_type == "cispo" else 0.1)


@pytest.mark.parametrize(
    ("loss_type", "level", "use_bias_correction_kl"),
    [
        (loss_type, level, is_corrected)
        for loss_type, level, is_corrected in product(LOSS_TYPES, ("token", "sequence"), (True, False))
        if loss_type != "gmpo" or not is_corrected  # TRL's GMPO never corrects the penalty
    ],
)
def test_kl_penalty(grpo, loss_type, level, use_bias_correction_kl):
    grpo.compare(loss_type, level=level, beta=0.1, use_bias_correction_kl=use_bias_correction_kl)


@pytest.mark.parametrize(
    ("loss_type", "mode", "bounds"),
    [
        (loss_type, mode, bounds)
        for loss_type, mode, bounds in product(LOSS_TYPES, MISMATCH_MODES, ((3.0, None), (1.2, 0.6)))
        if loss_type != "gmpo"  # TRL's ignores the sampler
    ],
)
def test_mismatch_of_sampler_and_policy(grpo, loss_type, mode, bounds):
    grpo.compare(loss_type, mismatch=(mode, *bounds))


# The mean of old minus new over a sequence: this keeps some of those with a negative advantage.
@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name != "gmpo"])
@pytest.mark.parametrize("mismatch", [None, ("token_truncate", 3.0, None)])
def test_off_policy_mask(grpo, loss_type, mismatch):
    grpo.compare(loss_type, off_policy_threshold=0.05, mismatch=mismatch)


# TRL's GMPO has a constant loss for a sequence without an uncertain token, and at the smaller share there is one.
@pytest.mark.parametrize(
    ("loss_type", "share"), [pair for pair in product(LOSS_TYPES, (0.2, 0.7)) if pair != ("gmpo", 0.2)]
)
def test_top_entropy_quantile(grpo, loss_type, share):
    grpo.compare(loss_type, top_entropy_quantile=share, turns=True)


@pytest.mark.parametrize(
    ("loss_type", "share"), [(name, share) for name, share in product(LOSS_TYPES, (1.0, 0.5)) if name != "gmpo"]
)
def test_entropy_bonus(grpo, loss_type, share):
    grpo.compare(loss_type, entropy_coef=0.3, top_entropy_quantile=share)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_turns_of_an_environment_and_truncated_completions(grpo, loss_type):
    if loss_type == "gmpo":
        grpo.compare(loss_type, turns=True)  # without targets TRL's loss is a constant here too
        return
    grpo.compare(loss_type, turns=True, mask_truncated=True, beta=0.1)


@pytest.mark.parametrize(
    ("scale_rewards", "aggregation"),
    [
        ("group", "sum_then_normalize"),
        ("batch", "sum_then_normalize"),
        ("none", "sum_then_normalize"),
        ("group", "normalize_then_sum"),
    ],
)
def test_advantages(grpo, scale_rewards, aggregation):
    grpo.compare("dapo", scale_rewards=scale_rewards, aggregation=aggregation)


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name != "gmpo"])
def test_everything_at_once(grpo, loss_type):
    grpo.compare(
        loss_type,
        level="sequence",
        turns=True,
        mask_truncated=True,
        beta=0.05,
        mismatch=("sequence_truncate", 3.0, 0.5),
        off_policy_threshold=0.05,
        top_entropy_quantile=0.6,
        entropy_coef=0.1,
        scale_rewards="batch",
    )


def test_adaptive_entropy_coefficient(grpo):
    control = AdaptiveEntropyCoefficient(0.01, delta=0.005, target=0.9)
    trainer, rollouts, targets = grpo.trainer, grpo.rollouts, grpo.rollouts.targets()
    with (
        settings(trainer, use_adaptive_entropy=True, _last_world_entropy=float("inf")),
        settings(trainer.args, entropy_target=0.9, entropy_coef_delta=0.005, entropy_coef_min=0, entropy_coef_max=1),
    ):
        applied = []
        for scale in (0.5, 0.5, 2.0, 2.0, 0.7):
            with settings(rollouts, entropies=scale * rollouts.entropies):
                applied.append(control.applied)
                theirs = grpo.theirs("dapo", Options(entropy_coef=control.coefficient))
                ours = grpo.ours("dapo", Options(entropy_coef=applied[-1]))
                control.update(rollouts.entropies[targets].mean().item())
            assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=1e-6)
            assert trainer._last_world_entropy == pytest.approx(control.last_entropy)
            assert trainer._metrics["train"]["entropy_coef"][-1] == pytest.approx(control.coefficient)
    assert applied == pytest.approx([0, 0.015, 0.02, 0, 0])


@pytest.fixture(scope="module")
def rloo(tmp_path_factory):
    rollouts = Rollouts()
    return trl_trainer(tmp_path_factory.mktemp("rloo"), "RLOO", rollouts, beta=0.0), rollouts


@pytest.mark.parametrize(
    ("beta", "normalize", "clip_range"), [(0.0, False, None), (0.05, False, None), (0.05, True, (-0.5, 0.5))]
)
def test_rloo(rloo, beta, normalize, clip_range):
    trainer, rollouts = rloo
    leaves = Leaves(trainer, rollouts)
    generated = ([[LETTER]] * NUM_SEQUENCES, rollouts.completion_ids, [""] * NUM_SEQUENCES)
    with settings(
        trainer,
        beta=beta,
        ref_model=object(),
        normalize_advantages=normalize,
        reward_clip_range=clip_range,
        _generate=lambda prompts: generated,
        _get_per_token_logps_and_entropies=leaves,
    ):
        inputs = trainer._generate_and_score_completions(INPUTS)
        theirs = outcome(trainer._compute_loss(trainer.model, inputs), leaves.new, leaves.entropies, rollouts.targets())

    targets = rollouts.targets()
    ids = targets.nonzero()[:, 0]
    new_leaf = rollouts.new.clone().requires_grad_()
    new, old, ref = (values[targets] for values in (new_leaf, rollouts.old, rollouts.ref))
    rewards = combine_rewards(rollouts.rewards, torch.tensor([1.0, 0.5]))
    if clip_range:
        rewards = rewards.clamp(*clip_range)
    rewards = rewards - beta * sums_by_sequence(kl_penalty(old, ref, "k1"), ids, NUM_SEQUENCES)
    groups = torch.arange(NUM_SEQUENCES) // NUM_GENERATIONS
    advantages = leave_one_out(rewards, groups, normalize=normalize)
    assert_close(advantages, inputs["advantages"], rtol=1e-5, atol=1e-6)
    loss = policy_loss(
        new,
        old,
        advantages[ids],
        ids,
        NUM_SEQUENCES,
        loss_type="grpo",
        importance_sampling_level="sequence_sum",
    )
    total = (token_weights("grpo", ids, NUM_SEQUENCES) * loss.losses).sum() / NUM_SEQUENCES
    assert_same_step(outcome(total, new_leaf, leaves.entropies, targets), theirs)
