"""GRPO against TRL, whole steps on the same completions: loss, change of every weight and what is logged, float32,
1e-5."""

from itertools import product

import pytest

from tests.parity.online_sides import CLIP_METRICS, GRPO_METRICS, compare
from tuneline.losses.mismatch import MISMATCH_MODES
from tuneline.losses.policy import CISPO_CAP

pytest.importorskip("trl", reason="parity is measured against TRL, which is not installed")

TRL_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
MOVED = {"num_iterations": 2, "max_steps": 2}  # the second update is by a policy that has left the sampler
COUNTED_TWICE = {"num_tokens"}  # by us at each pass over a completion, by TRL once


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("grpo")


def loss_options(loss_type):
    # TRL has no default of its own for the cap of cispo, and takes epsilon for it
    return {"loss_type": loss_type, **({"epsilon_high": CISPO_CAP} if loss_type == "cispo" else {})}


def assert_same_metrics(lines, names):
    for own, theirs in zip(*lines, strict=True):
        wanted = {name for name in names if name in theirs}
        assert {name: own[name] for name in wanted} == pytest.approx(
            {name: theirs[name] for name in wanted}, rel=1e-4, abs=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize(("loss_type", "level"), list(product(TRL_LOSSES, ("token", "sequence"))))
def test_every_loss_at_every_level_over_two_updates(folder, loss_type, level):
    lines = compare("GRPO", folder, **MOVED, importance_sampling_level=level, **loss_options(loss_type))
    names = GRPO_METRICS | (CLIP_METRICS if loss_type not in ("cispo", "vespo", "sapo") else set())
    names |= {"cispo_clip_ratio"} if loss_type == "cispo" else {"vespo/phi_seq_mean"} if loss_type == "vespo" else set()
    assert_same_metrics(lines, names - COUNTED_TWICE)
    if loss_type == "grpo":
        assert lines[0][1]["clip_ratio/region_mean"] > 0


@pytest.mark.parametrize(("is_corrected", "level"), list(product((True, False), ("token", "sequence"))))
@pytest.mark.slow
def test_kl_penalty(folder, is_corrected, level):
    options = {"beta": 0.3, "use_bias_correction_kl": is_corrected, "importance_sampling_level": level}
    lines = compare("GRPO", folder, **MOVED, **options)
    assert lines[0][1]["kl"] > 0
    assert_same_metrics(lines, (GRPO_METRICS | CLIP_METRICS | {"kl"}) - COUNTED_TWICE)


@pytest.mark.parametrize(
    "options", [{"max_steps": 3}, {**MOVED, "beta": 0.3}, {"max_steps": 2, "mask_truncated_completions": True}], ids=str
)
def test_steps_one_after_the_other(folder, options):
    names = (GRPO_METRICS | CLIP_METRICS | {"kl"}) - (COUNTED_TWICE if "num_iterations" in options else set())
    assert_same_metrics(compare("GRPO", folder, **options), names)


@pytest.mark.slow
@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_scale_of_rewards(folder, scale_rewards):
    names = GRPO_METRICS - {"frac_reward_zero_std"}  # with "batch" TRL's is of the whole batch
    assert_same_metrics(compare("GRPO", folder, scale_rewards=scale_rewards), names)


@pytest.mark.slow
def test_rewards_normalized_before_they_are_added(folder):
    compare("GRPO", folder, multi_objective_aggregation="normalize_then_sum")


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "luspo"])
def test_completions_that_were_cut_off_are_left_out(folder, loss_type):
    lines = compare("GRPO", folder, **MOVED, loss_type=loss_type, mask_truncated_completions=True)
    assert_same_metrics(lines, (GRPO_METRICS | CLIP_METRICS) - COUNTED_TWICE)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MISMATCH_MODES)
def test_mismatch_of_sampler_and_policy(folder, mode):
    bounds = {"vllm_importance_sampling_clip_max": 2.0, "vllm_importance_sampling_clip_min": 0.05}
    lines = compare("GRPO", folder, mismatch=True, vllm_importance_sampling_mode=mode, **bounds)
    sampling = {f"sampling/sampling_logp_difference/{name}" for name in ("mean", "max")} | {
        f"sampling/importance_sampling_ratio/{name}" for name in ("min", "mean", "max")
    }
    assert sampling <= lines[1][0].keys()
    assert_same_metrics(lines, GRPO_METRICS | CLIP_METRICS | sampling)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"entropy_coef": 0.3},
        {"entropy_coef": 0.3, "loss_type": "grpo", "top_entropy_quantile": 0.5},
        {"use_adaptive_entropy": True, "entropy_target": 10.0, "entropy_coef_delta": 0.1, "max_steps": 3},
    ],
    ids=str,
)
def test_entropy_bonus(folder, options):
    lines = compare("GRPO", folder, **options)
    assert_same_metrics(lines, GRPO_METRICS | CLIP_METRICS | {"policy_loss", "entropy_coef"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"top_entropy_quantile": 0.3},
        {"off_policy_mask_threshold": 0.05, **MOVED},
        {"delta": 1.1, **MOVED},
        {"epsilon": 0.1, "epsilon_high": 0.3, **MOVED},
        {"temperature": 0.7},
    ],
    ids=str,
)
def test_further_options(folder, options):
    names = GRPO_METRICS | CLIP_METRICS
    names -= COUNTED_TWICE if "max_steps" in options else set()
    names -= CLIP_METRICS if "delta" in options else set()  # TRL bounds the ratio before it looks
    assert_same_metrics(compare("GRPO", folder, **options), names)


# grpo, bnpo, dr_grpo, luspo and sapo of TRL are means of micro-batch means, bnpo's of unequal ones
@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "vespo", "dr_grpo", "grpo", "luspo"])
def test_a_step_of_several_micro_batches(folder, loss_type):
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    compare("GRPO", folder, **cut, **loss_options(loss_type))
