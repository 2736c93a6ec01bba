"""What a model says of prompt trees is what it says of every sequence on its own: values and gradients."""

import copy

import pytest
import torch
from torch.testing import assert_close

from tests.models import ARCHITECTURES, VOCAB, tiny_causal_lm, tiny_reward_model
from tuneline.logprobs import sum_by_sequence, token_logprobs
from tuneline.models.layouts import prepare_for_trees
from tuneline.scores import sequence_scores
from tuneline.trees import Branch, Tree, lay_out

LENGTHS = [(7, (5, 3)), (1, (4,)), (11, (2, 6, 9)), (4, (1, 1))]


def random_trees(seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(2, VOCAB, (n,), generator=generator).tolist()  # noqa: E731
    return [Tree(draw(prompt), [Branch(draw(n)) for n in branches]) for prompt, branches in LENGTHS]


def sequences(trees):
    return [(list(tree.prompt_ids), list(branch.ids)) for tree in trees for branch in tree.branches]


def separate_logprobs(model, trees):
    found = []
    for prompt, branch in sequences(trees):
        logits = model(input_ids=torch.tensor([prompt + branch]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        found.append(logits.float().log_softmax(-1).gather(1, torch.tensor(branch)[:, None])[:, 0])
    return torch.cat(found)


def weights_for(values):
    return torch.linspace(-1, 2, values.numel(), dtype=values.dtype)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_and_gradients_equal_those_of_separate_sequences(architecture, checkpointing):
    plain = tiny_causal_lm(architecture)
    model = copy.deepcopy(plain)
    assert prepare_for_trees(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    plain.train(), model.train()
    trees = random_trees()

    expected = separate_logprobs(plain, trees)
    (expected * weights_for(expected)).sum().backward()
    found = token_logprobs(model, lay_out(trees)).logprobs
    (found * weights_for(found)).sum().backward()

    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients(plain).items():
        size = max(1.0, float(gradient.abs().max()))  # either way is as far from the gradient in float64
        assert_close(
            model.get_parameter(name).grad, gradient, atol=1e-5 * size, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_equal_those_of_separate_sequences(architecture):
    plain = tiny_causal_lm(architecture).eval()
    model = copy.deepcopy(plain)
    prepare_for_trees(model)
    from tuneline.attention import Segments, reading_trees

    trees = lay_out(random_trees())
    with torch.no_grad(), reading_trees():
        hidden = model.base_model(
            input_ids=trees.input_ids,
            position_ids=trees.position_ids,
            segments=Segments(trees.segments, trees.num_tokens),
            use_cache=False,
        ).last_hidden_state[0, trees.target_positions]
        expected = torch.cat(
            [
                plain.base_model(input_ids=torch.tensor([p + b]), use_cache=False).last_hidden_state[0, len(p) - 1 : -1]
                for p, b in sequences(random_trees())
            ]
        )
    assert_close(hidden, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_and_gradients_equal_those_of_separate_sequences(architecture):
    plain = tiny_reward_model(architecture)
    model = copy.deepcopy(plain)
    assert prepare_for_trees(model)
    trees = random_trees()

    expected = torch.cat([plain(input_ids=torch.tensor([p + b])).logits[0] for p, b in sequences(trees)])
    (expected * weights_for(expected)).sum().backward()
    found = sequence_scores(model, lay_out(trees))
    (found * weights_for(found)).sum().backward()

    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients(plain).items():
        assert_close(model.get_parameter(name).grad, gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_sliding_window_sees_what_it_sees_in_separate_sequences():
    plain = tiny_causal_lm("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1).eval()
    model = copy.deepcopy(plain)
    assert prepare_for_trees(model)
    trees = random_trees()
    with torch.no_grad():
        assert_close(
            token_logprobs(model, lay_out(trees)).logprobs, separate_logprobs(plain, trees), atol=1e-5, rtol=1e-5
        )


def test_bfloat16_stays_within_its_own_rounding():
    plain = tiny_causal_lm("llama").eval()
    model = copy.deepcopy(plain)
    prepare_for_trees(model)
    trees = random_trees()
    with torch.no_grad():
        exact = separate_logprobs(plain, trees)
        with torch.autocast("cpu", torch.bfloat16):
            found = token_logprobs(model, lay_out(trees)).logprobs
            separate = separate_logprobs(plain, trees)
    rounding = (separate - exact).abs().mean()
    assert (found - exact).abs().mean() < 2 * rounding
    assert found.dtype == torch.float32


def test_generation_is_unchanged_by_the_exchange():
    plain = tiny_causal_lm("qwen2").eval()
    model = copy.deepcopy(plain)
    prepare_for_trees(model)
    ids = torch.tensor([[0, 0, 5, 9, 12], [3, 4, 5, 6, 7]])
    mask = (ids != 0).long()
    settings = dict(attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert_close(model.generate(ids, **settings), plain.generate(ids, **settings))
    assert_close(model(ids, attention_mask=mask).logits, plain(ids, attention_mask=mask).logits)


def test_a_model_that_cannot_read_trees_takes_padded_rows_to_the_same_values():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from tests.models import _SIZES

    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**_SIZES, sliding_window=16, query_pre_attn_scalar=8)).eval()
    model.set_attn_implementation("eager")
    trees = random_trees()
    assert not prepare_for_trees(model)
    with torch.no_grad():
        found = token_logprobs(model, lay_out(trees)).logprobs
        assert_close(found, separate_logprobs(model, trees), atol=1e-5, rtol=1e-5)


def test_sequence_sums_leave_nothing_out():
    model = tiny_causal_lm()
    prepare_for_trees(model)
    trees = lay_out(random_trees())
    with torch.no_grad():
        logprobs = token_logprobs(model, trees).logprobs
    sums = sum_by_sequence(logprobs, trees)
    assert_close(sums, torch.stack([logprobs[trees.sequence_ids == i].sum() for i in range(trees.num_sequences)]))
