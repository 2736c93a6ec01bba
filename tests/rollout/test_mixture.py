"""The mixture of two models: what is drawn, by hand and at its ends."""

from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close

from tests.trainers.taught import another_model, student
from tuneline.errors import ConfigError
from tuneline.rollout.mixture import MixtureEngine
from tuneline.rollout.protocol import Request, Sampling
from tuneline.rollout.transformers_engine import TransformersEngine

REQUESTS = [Request([5, 6, 7], [1, 2]), Request([8], [3]), Request([9, 10, 11, 12], [4])]
SAMPLING = Sampling(max_new_tokens=6, temperature=0.7, stop_token_ids=(1,))


def flat(drawn):
    return [one for group in drawn for one in group]


def test_its_logprobs_are_those_of_the_normalised_geometric_mean():
    first, second, share = student().eval(), another_model().eval(), 0.3
    drawn = MixtureEngine(first, second, share).generate(REQUESTS, SAMPLING)
    prompts = [request.prompt_ids for request in REQUESTS for _ in request.seeds]
    for prompt, one in zip(prompts, flat(drawn), strict=True):
        ids = torch.tensor([[*prompt, *one.ids]])
        with torch.no_grad():
            logits, others = first(ids).logits[0], second(ids).logits[0]
        mixture = (1 - share) * logits.log_softmax(-1) + share * others.log_softmax(-1)
        expected = (mixture / 0.7).log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(one.ids)[:, None])
        assert_close(torch.tensor(one.logprobs), expected[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_at_its_ends_it_is_one_of_the_two(share):
    first, second = student(), another_model()
    drawn = flat(MixtureEngine(first, second, share).generate(REQUESTS, SAMPLING))
    expected = flat(TransformersEngine(second if share else first).generate(REQUESTS, SAMPLING))
    assert [one.ids for one in drawn] == [one.ids for one in expected]
    assert first.training == student().training  # both are as they were
    assert first.config._attn_implementation == student().config._attn_implementation
    assert second.config._attn_implementation == student().config._attn_implementation


def test_one_model_may_be_both_by_a_switch():
    model, switched = student(), []

    @contextmanager
    def switch():
        switched.append(True)
        model.lm_head.weight.data *= 2
        yield
        model.lm_head.weight.data /= 2

    drawn = flat(MixtureEngine(model, model, 1.0, switch=switch).generate(REQUESTS, SAMPLING))
    assert switched
    model.lm_head.weight.data *= 2
    expected = flat(TransformersEngine(model).generate(REQUESTS, SAMPLING))
    assert [one.ids for one in drawn] == [one.ids for one in expected]


def test_a_share_beyond_1_is_told():
    with pytest.raises(ConfigError, match=r"share is 1\.5"):
        MixtureEngine(student(), another_model(), 1.5)
