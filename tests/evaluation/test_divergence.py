import math

import pytest
import torch
from torch import nn

from tests.models import VOCAB, tiny_causal_lm
from tuneline.evaluation import divergence
from tuneline.evaluation.divergence import Sampled, kl_divergences, target_logits
from tuneline.logprobs import sum_by_sequence, token_logprobs
from tuneline.models import prepare_for_trees
from tuneline.trees import Branch, Tree, lay_out


@pytest.fixture(scope="module", params=["qwen2", "gpt2"])
def models(request):
    models = tiny_causal_lm(request.param, seed=0).eval(), tiny_causal_lm(request.param, seed=1).eval()
    for model in models:
        prepare_for_trees(model)
    return models


def some_samples(n=7):
    generator = torch.Generator().manual_seed(3)
    draw = lambda k: torch.randint(2, VOCAB, (k,), generator=generator).tolist()  # noqa: E731
    return [Sampled(draw(2 + i), draw(1 + 2 * i)) for i in range(n)]


def test_log_ratios_are_those_of_token_logprobs(models):
    samples = some_samples()
    trees = lay_out([Tree(s.prompt_ids, [Branch(s.completion_ids)]) for s in samples])
    own, other = (sum_by_sequence(token_logprobs(model, trees).logprobs, trees) for model in models)
    assert kl_divergences(*models, samples).log_ratios == pytest.approx((own - other).tolist(), abs=1e-4)


def test_exact_divergence_is_that_of_the_next_token_distributions(models):
    policy, reference = models
    sample = Sampled([5, 6, 7], [8, 9])
    ids = torch.tensor([[5, 6, 7, 8]])
    log_p, log_q = (m(input_ids=ids).logits[0, 2:].log_softmax(-1) for m in models)
    expected = nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    assert kl_divergences(policy, reference, [sample]).exact == pytest.approx([expected], rel=1e-5)


def test_a_policy_does_not_diverge_from_itself(models):
    result = kl_divergences(models[0], models[0], some_samples())
    assert result.log_ratios == [0] * 7
    assert result.exact == [0] * 7


def test_both_estimates_have_one_mean_over_samples_of_the_policy(models):
    policy, reference = models
    prompt = [3, 4]
    with torch.inference_mode():
        p, q = (m(input_ids=torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1) for m in models)
    kl = float((p.exp() * (p - q)).sum())
    drawn = torch.multinomial(p.exp(), 3000, replacement=True, generator=torch.Generator().manual_seed(0)).tolist()
    result = kl_divergences(policy, reference, [Sampled(prompt, [token]) for token in drawn])
    assert result.exact == pytest.approx([kl] * 3000, rel=1e-4)
    spread = float((p.exp() * (p - q - kl) ** 2).sum().sqrt())
    assert math.fsum(result.log_ratios) / 3000 == pytest.approx(kl, abs=4 * spread / math.sqrt(3000))


def test_a_batch_may_be_cut_anywhere(models, monkeypatch):
    whole = kl_divergences(*models, some_samples())
    monkeypatch.setattr(divergence, "_LOGITS_AT_ONCE", VOCAB * 9)
    cut = kl_divergences(*models, some_samples())
    assert cut.log_ratios == pytest.approx(whole.log_ratios, abs=1e-4)
    assert cut.exact == pytest.approx(whole.exact, abs=1e-4)


def test_an_empty_completion_counts_zero(models):
    result = kl_divergences(*models, [Sampled([4, 5], []), *some_samples(1)])
    assert result.log_ratios[0] == 0
    assert result.exact[0] == 0
    assert result.exact[1] > 0


def test_models_that_read_no_trees_take_padded_rows():
    plain = tiny_causal_lm("llama").eval()
    prepared = tiny_causal_lm("llama").eval()
    prepare_for_trees(prepared)
    trees = lay_out([Tree(s.prompt_ids, [Branch(s.completion_ids)]) for s in some_samples()])
    torch.testing.assert_close(target_logits(plain, trees), target_logits(prepared, trees), atol=1e-4, rtol=1e-4)
