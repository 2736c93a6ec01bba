"""RLOO against TRL, whole steps on the same completions: loss, change of every weight and what is logged, float32,
1e-5."""

import pytest

from tests.parity.online_sides import CLIP_METRICS, GRPO_METRICS, compare
from tests.parity.test_grpo import COUNTED_TWICE, MOVED, assert_same_metrics

pytest.importorskip("trl", reason="parity is measured against TRL, which is not installed")


def slow(options):
    return pytest.param(options, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rloo")


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.2, "max_steps": 3},
        slow({"beta": 0.0}),
        slow({"beta": 0.0, **MOVED}),
        slow({"beta": 0.2, "max_steps": 3, "num_iterations": 2, "learning_rate": 0.005}),
        slow({"beta": 0.1, "max_steps": 2, "normalize_advantages": True}),
        slow({"beta": 0.1, "max_steps": 2, "reward_clip_range": (0.5, 1.2)}),
        slow({"beta": 0.1, "max_steps": 2, "normalize_advantages": True, "reward_clip_range": (0.5, 1.2)}),
        slow({"beta": 0.1, "max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}),
    ],
    ids=str,
)
def test_steps_and_their_metrics(folder, options):
    lines = compare("RLOO", folder, **options)
    names = GRPO_METRICS | CLIP_METRICS | {"kl"}
    names -= {"frac_reward_zero_std"}  # TRL's is taken after the penalty is subtracted
    names -= COUNTED_TWICE if "num_iterations" in options else set()
    names -= {"entropy"} if "gradient_accumulation_steps" in options else set()  # TRL's is a mean of means
    assert_same_metrics(lines, names)


@pytest.mark.slow
def test_completions_that_were_cut_off_are_left_out(folder):
    # TRL's loss has a constant, the advantage, for each completion that it leaves out; it moves no weight
    lines = compare("RLOO", folder, beta=0.1, max_steps=2, mask_truncated_completions=True, loss_has_constants=True)
    assert_same_metrics(lines, (GRPO_METRICS | CLIP_METRICS | {"kl"}) - {"loss", "frac_reward_zero_std"})
