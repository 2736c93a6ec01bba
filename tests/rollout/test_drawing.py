"""Draws, and the cuts of the support, against their definitions in transformers."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tuneline.errors import ConfigError, RolloutError
from tuneline.rollout.drawing import BLOCK, check_sampling, draw, num_blocks, penalize_repetition
from tuneline.rollout.protocol import Sampling

CUTS = (
    dict(top_k=5),
    dict(top_k=10**6),
    dict(top_p=0.9),
    dict(top_p=0.01),
    dict(top_p=0.999),
    dict(min_p=0.1),
    dict(min_p=0.0, top_p=0.7),
    dict(top_k=20, top_p=0.8),
    dict(top_k=40, top_p=0.95, min_p=0.05),
)


def exponentials(rows: int, vocab: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(rows, num_blocks(vocab) + BLOCK, dtype=torch.float64)
    return noise.exponential_(generator=generator)


def in_transformers(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probabilities as `generate` would draw from them."""
    steps = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        steps.append(MinPLogitsWarper(sampling.min_p))
    return LogitsProcessorList(steps)(torch.zeros(len(logits), 1, dtype=torch.long), logits).log_softmax(-1)


@pytest.mark.parametrize("vocab", [7, 300])
def test_tokens_come_as_often_as_they_are_likely(vocab):
    draws = 40_000
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(1)) * 2
    ids = draw(logits.expand(draws, -1), exponentials(draws, vocab), Sampling(1, temperature=0.7)).ids
    expected = (logits / 0.7).softmax(-1)
    found = torch.bincount(ids, minlength=vocab) / draws
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((found - expected).abs() < 5 * deviation + 1e-4).all()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_logprobs_are_those_at_the_temperature(temperature):
    logits = torch.randn(9, 500, generator=torch.Generator().manual_seed(2)) * 3
    drawn = draw(logits, exponentials(9, 500), Sampling(1, temperature=temperature))
    expected = (logits / temperature).log_softmax(-1).gather(1, drawn.ids[:, None])[:, 0]
    assert_close(drawn.logprobs, expected, atol=1e-6, rtol=0)
    assert drawn.kept is None


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("vocab", [97, 5000])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_support_and_logprobs_are_those_of_transformers(cut, vocab, spread):
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(3)) * spread
    sampling = Sampling(1, temperature=0.8, **cut)
    drawn = draw(logits, exponentials(6, vocab), sampling)
    expected = in_transformers(logits, sampling)
    assert drawn.kept is not None
    assert torch.equal(drawn.kept, expected > -torch.inf)
    assert_close(drawn.logprobs, expected.gather(1, drawn.ids[:, None])[:, 0], atol=2e-6, rtol=0)


def test_nothing_is_drawn_outside_the_support():
    logits = torch.randn(1, 400, generator=torch.Generator().manual_seed(4))
    drawn = draw(logits.expand(5000, -1), exponentials(5000, 400), Sampling(1, top_k=3))
    assert set(drawn.ids.tolist()) == set(logits[0].topk(3).indices.tolist())


def test_tokens_that_tie_with_the_last_one_kept_are_kept():
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    drawn = draw(logits, exponentials(1, 4), Sampling(1, top_k=2))
    assert drawn.kept is not None
    assert drawn.kept.tolist() == [[True, True, True, False]]


def test_temperature_zero_takes_the_likeliest_token_with_its_logprob_at_temperature_one():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, 0.0]])
    drawn = draw(logits, exponentials(2, 3), Sampling(1, temperature=0.0, top_p=0.5))
    assert drawn.ids.tolist() == [1, 0]
    assert_close(drawn.logprobs, logits.log_softmax(-1)[[0, 1], [1, 0]])
    assert drawn.kept is None


def test_rows_do_not_influence_each_other():
    logits = torch.randn(8, 3000, generator=torch.Generator().manual_seed(5))
    logits[3] *= 10  # its nucleus is found among fewer tokens than the others'
    noise = exponentials(8, 3000)
    sampling = Sampling(1, top_p=0.9)
    together = draw(logits, noise, sampling)
    alone = [draw(logits[i : i + 1], noise[i : i + 1], sampling) for i in range(8)]
    assert together.ids.tolist() == [drawn.ids.item() for drawn in alone]
    assert torch.equal(together.kept, torch.cat([drawn.kept for drawn in alone]))


def test_repetition_penalty_is_that_of_transformers():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(6)) * 2
    ids = torch.tensor([[1, 2, 3, 3], [7, 7, 7, 9]])
    seen = torch.zeros(2, 50, dtype=torch.bool).scatter_(1, ids, True)
    assert_close(penalize_repetition(logits, seen, 1.3), RepetitionPenaltyLogitsProcessor(1.3)(ids, logits))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(value):
    logits = torch.tensor([[0.0, value]])
    with pytest.raises(RolloutError, match="not finite"):
        draw(logits, exponentials(1, 2), Sampling(1))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(max_new_tokens=0),
        dict(temperature=-0.1),
        dict(temperature=math.nan),
        dict(top_p=0.0),
        dict(top_p=1.1),
        dict(top_k=-1),
        dict(min_p=1.5),
        dict(repetition_penalty=0.0),
    ],
    ids=str,
)
def test_settings_out_of_range_are_an_error(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        check_sampling(Sampling(**{"max_new_tokens": 4, **wrong}))
