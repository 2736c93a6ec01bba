"""The heads: gradients by hand and by finite differences, and no (tokens, vocab) tensor at any time."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tuneline.heads as heads
from tests.models import tiny_causal_lm
from tuneline.heads import Question, TargetHead
from tuneline.logprobs import token_logprobs
from tuneline.models.layouts import prepare_for_trees
from tuneline.products import fill_up
from tuneline.trees import Branch, Tree, lay_out


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks on small inputs."""
    monkeypatch.setattr(heads, "row_chunks", lambda n, weight: (slice(i, min(i + 3, n)) for i in range(0, n, 3)))


def asked_head(vocab=11, hidden=5, targets=7, bias=True, **question):
    generator = torch.Generator().manual_seed(0)
    head = TargetHead(hidden, vocab, bias=bias).double()
    states = torch.randn(1, targets, hidden, dtype=torch.float64, generator=generator).float().requires_grad_()
    ids = torch.randint(0, vocab, (targets,), generator=generator)
    return head.float(), states, Question(ids, torch.arange(len(ids)), **question)


def plain_answers(head, states, question):
    log_p = (torch.nn.functional.linear(states[0], head.weight, head.bias) / question.temperature).log_softmax(-1)
    logprobs = log_p.gather(1, question.target_ids[:, None])[:, 0]
    return (
        logprobs,
        -(log_p.exp() * log_p).sum(-1),
        (2 * log_p).logsumexp(-1),
        (log_p.argmax(-1) == question.target_ids),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("small_chunks")
def test_answers_and_gradients_equal_those_of_plain_logits(temperature, bias):
    head, states, question = asked_head(
        bias=bias, temperature=temperature, with_entropy=True, with_probability_mass=True
    )
    g_logprobs, g_entropies = torch.randn(2, 7)
    parameters = [states, *head.parameters()]

    expected = plain_answers(head, states, question)
    wanted = torch.autograd.grad((expected[0] * g_logprobs + expected[1] * g_entropies).sum(), parameters)
    with head.asked(question):
        logprobs, _, entropies, log_mass, is_top1, _ = head(states)[0].unbind(-1)
    found = torch.autograd.grad((logprobs * g_logprobs + entropies * g_entropies).sum(), parameters)

    assert_close(logprobs, expected[0])
    assert_close(entropies, expected[1])
    assert_close(log_mass, expected[2])
    assert_close(is_top1.bool(), expected[3])
    for f, w in zip(found, wanted, strict=True):
        assert_close(f, w, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective", ["nll", "dft"])
@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.usefixtures("small_chunks")
def test_objectives_have_the_gradient_of_their_formula(objective, uniform):
    head, states, question = asked_head(objective=objective)
    upstream = torch.full((7,), 0.3) if uniform else torch.randn(7)
    parameters = [states, *head.parameters()]

    logprobs = plain_answers(head, states, question)[0]
    losses = -logprobs if objective == "nll" else -logprobs.detach().exp() * logprobs
    wanted = torch.autograd.grad((losses * upstream).sum(), parameters)
    with head.asked(question):
        answers = head(states)[0, :, 1]
    found = torch.autograd.grad((answers * upstream).sum(), parameters)

    assert_close(answers, losses)
    for f, w in zip(found, wanted, strict=True):
        assert_close(f, w, atol=1e-6, rtol=1e-5)


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


def test_logits_never_exist_forward_or_backward(monkeypatch):
    vocab, rows = 2048, 40
    monkeypatch.setitem(heads._CHUNK_ELEMENTS, "cpu", 16 * vocab)
    model = tiny_causal_lm("llama", vocab_size=vocab)
    prepare_for_trees(model)
    trees = lay_out([Tree([5, 6], [Branch(list(range(2, 22))), Branch(list(range(3, 23)))]) for _ in range(rows)])
    num_tokens = fill_up(trees).num_tokens
    largest_known = max(model.lm_head.weight.numel(), num_tokens * model.config.intermediate_size)
    with LargestTensor() as seen:
        for answers in (token_logprobs(model, trees).logprobs, token_logprobs(model, trees, objective="nll").losses):
            answers.sum().backward()
    assert seen.largest == largest_known  # weights, and the activations of a layer
    assert trees.num_targets * vocab > 20 * largest_known
