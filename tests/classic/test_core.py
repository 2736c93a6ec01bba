"""What is imported from `core` and `extras`."""

import pytest
import torch
from torch.testing import assert_close

from tests.classic.models import t5_with_value_head, with_value_head
from tests.trainers.rows import character_tokenizer
from tuneline.core import (
    AdaptiveKLController,
    FixedKLController,
    LengthSampler,
    clip_by_value,
    entropy_from_logits,
    logprobs_from_logits,
    masked_mean,
    masked_var,
    masked_whiten,
    respond_to_batch,
    set_seed,
)
from tuneline.errors import ConfigError, DataError
from tuneline.extras import BestOfNSampler

VALUES = torch.tensor([[1.0, 2.0, 9.0], [3.0, 6.0, 9.0]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 0]])


def test_masked_moments_are_those_of_what_counts():
    kept = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert masked_mean(VALUES, MASK) == kept.mean()
    assert_close(masked_mean(VALUES, MASK, axis=1), torch.tensor([1.5, 4.5]))
    assert_close(masked_var(VALUES, MASK), kept.var())
    assert_close(masked_var(VALUES, MASK, unbiased=False), kept.var(unbiased=False))
    whitened = masked_whiten(VALUES, MASK)
    assert_close(whitened[MASK.bool()], (kept - kept.mean()) / kept.std())
    assert_close(masked_whiten(VALUES, MASK, shift_mean=False)[MASK.bool()].mean(), kept.mean())
    with pytest.raises(ValueError, match="leaves 1 values"):
        masked_var(VALUES, torch.tensor([[1, 0, 0], [0, 0, 0]]))


def test_functions_of_logits():
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[0, 1, 2], [3, 4, 0]])
    distribution = torch.distributions.Categorical(logits=logits)
    assert_close(logprobs_from_logits(logits, labels), distribution.log_prob(labels))
    assert_close(logprobs_from_logits(logits, labels, gather=False), logits.log_softmax(-1))
    assert_close(entropy_from_logits(logits), distribution.entropy())
    bounds = torch.tensor([0.0, 2.0])
    assert_close(clip_by_value(torch.tensor([-1.0, 5.0]), bounds - 0.5, bounds + 0.5), torch.tensor([-0.5, 2.5]))


def test_controllers_and_seeds_are_there():
    adaptive, fixed = AdaptiveKLController(0.2, 6, 10000), FixedKLController(0.1)
    for controller in (adaptive, fixed):
        controller.update(12.0, 256)
    assert adaptive.value == pytest.approx(0.2 * (1 + 0.2 * 256 / 10000))
    assert fixed.value == 0.1
    sampler = LengthSampler(1, 1000)
    set_seed(3)
    first = sampler()
    set_seed(3)
    assert sampler() == first


def test_responses_of_one_length_are_drawn_for_a_batch():
    set_seed(0)
    model = with_value_head()
    model.generation_config.eos_token_id = list(range(1, 97))
    responses = respond_to_batch(model, torch.tensor([[5, 6], [7, 8]]), txt_len=4)
    assert responses.shape == (2, 4)


def words(texts):
    return [text.count("a") - text.count("b") for text in texts]


def test_the_best_of_several_responses_are_kept_best_first():
    tokenizer = character_tokenizer()
    asked = []

    def scores(texts):
        asked.append(list(texts))
        return words(texts)

    sampler = BestOfNSampler(
        with_value_head(), tokenizer, scores, LengthSampler(4, 8), sample_size=6, n_candidates=2, seed=0
    )
    queries = [torch.tensor(tokenizer(text)["input_ids"]) for text in ("abc", "what is")]
    found = sampler.generate(queries)
    assert [len(texts) for texts in asked] == [12]  # one call for all
    for query, group, drawn in zip(("abc", "what is"), found, (asked[0][:6], asked[0][6:]), strict=True):
        assert len(group) == 2
        best = sorted(words(drawn), reverse=True)[:2]
        assert words(group) == best
        assert all("".join(text.split()).startswith("".join(query.split())) for text in group)


def test_queries_come_in_any_form_and_draws_from_the_seed():
    tokenizer = character_tokenizer()

    def sampler(seed=3):
        return BestOfNSampler(
            with_value_head(), tokenizer, words, LengthSampler(4, 8, seed=1), sample_size=3, seed=seed
        )

    ids = tokenizer("abc")["input_ids"]
    forms = (torch.tensor(ids), torch.tensor([ids]), [torch.tensor(ids)], ids, [ids])
    answers = [sampler().generate(form) for form in forms]
    assert all(answer == answers[0] for answer in answers)
    again = sampler()
    assert again.generate(ids) != again.generate(ids)
    assert len(sampler(None).generate(ids)) == 1


def test_an_encoder_decoder_is_sampled_too():
    found = BestOfNSampler(t5_with_value_head(), character_tokenizer(), words, LengthSampler(4, 6), seed=0).generate(
        [torch.tensor([4, 5, 6]), torch.tensor([7, 8])]
    )
    assert [len(group) for group in found] == [1, 1]


def test_what_a_sampler_cannot_do_is_named():
    parts = (with_value_head(), character_tokenizer(), words, LengthSampler(2, 4))
    with pytest.raises(ConfigError, match="n_candidates=5 of sample_size=4"):
        BestOfNSampler(*parts, n_candidates=5)
    with pytest.raises(ConfigError, match="tokenizer is a NoneType"):
        BestOfNSampler(parts[0], None, words, parts[3])
    with pytest.raises(DataError, match="1 scores for 4 texts"):
        BestOfNSampler(parts[0], parts[1], lambda texts: [1.0], parts[3]).generate([3, 4])
    with pytest.raises(DataError, match="tokenized_query is empty"):
        BestOfNSampler(*parts).generate([[]])
