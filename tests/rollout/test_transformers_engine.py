"""Completions of the model itself, against its own teacher-forced probabilities and its own `generate`."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

from tests.models import ARCHITECTURES, VOCAB, tiny_causal_lm
from tuneline.models.layouts import prepare_for_trees
from tuneline.rollout.protocol import Completion, Request, RolloutEngine, Sampling, rollout_seed
from tuneline.rollout.transformers_engine import TransformersEngine

STOPS = (1, 2, 5)
SAMPLING = Sampling(max_new_tokens=24, stop_token_ids=STOPS)


def some_requests(num_prompts: int = 5, num_seeds: int = 3, **options) -> list[Request]:
    """Prompts of 1, 4, 7, ... tokens."""
    return [
        Request(
            [(7 * i + 3 * j) % VOCAB for j in range(1 + 3 * i)],
            [rollout_seed(i, j) for j in range(num_seeds)],
            **options,
        )
        for i in range(num_prompts)
    ]


def flat(completions: list[list[Completion]]) -> list[Completion]:
    return [completion for group in completions for completion in group]


@torch.no_grad()
def teacher_forced(model, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """(tokens, vocab) logits of each completion token, read at once and without a cache."""
    training = model.training
    logits = model.eval()(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0]
    model.train(training)
    return logits[len(prompt) - 1 : -1].float()


def assert_logprobs_are_the_models(model, requests, completions, sampling=SAMPLING, **tolerance):
    for request, group in zip(requests, completions, strict=True):
        for completion in group:
            logits = teacher_forced(model, list(request.prompt_ids), completion.ids) / (sampling.temperature or 1)
            expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
            assert_close(torch.tensor(completion.logprobs), expected, **(tolerance or dict(atol=1e-5, rtol=0)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_are_the_models_own(architecture):
    model = tiny_causal_lm(architecture)
    requests = some_requests()
    completions = TransformersEngine(model, batch_size=4).generate(requests, SAMPLING)
    assert [len(group) for group in completions] == [3] * 5
    assert_logprobs_are_the_models(model, requests, completions)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_logprobs_are_at_the_temperature(temperature):
    model = tiny_causal_lm()
    requests, sampling = some_requests(), Sampling(8, temperature=temperature)
    assert_logprobs_are_the_models(model, requests, TransformersEngine(model).generate(requests, sampling), sampling)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_completion_does_not_depend_on_the_rest_of_the_batch(architecture):
    model = tiny_causal_lm(architecture)
    requests = some_requests(num_prompts=6)
    expected = TransformersEngine(model).generate(requests, SAMPLING)
    assert TransformersEngine(model).generate(requests, SAMPLING) == expected  # to the last bit
    ids = [c.ids for c in flat(expected)]
    narrow = TransformersEngine(model, batch_size=2, prefill_tokens=5)
    assert [c.ids for c in flat(narrow.generate(requests, SAMPLING))] == ids
    turned = TransformersEngine(model, batch_size=7).generate(requests[::-1], SAMPLING)
    assert [c.ids for c in flat(turned[::-1])] == ids
    alone = [TransformersEngine(model).generate([r], SAMPLING)[0] for r in requests]
    assert [c.ids for c in flat(alone)] == ids


def test_greedy_completions_are_those_of_generate():
    model = tiny_causal_lm().eval()
    requests = some_requests(num_seeds=1)
    config = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=list(STOPS), pad_token_id=0)
    completions = TransformersEngine(model).generate(requests, Sampling(24, temperature=0.0, stop_token_ids=STOPS))
    for request, (completion,) in zip(requests, completions, strict=True):
        prompt = torch.tensor([request.prompt_ids])
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
        assert completion.ids == expected[0, prompt.shape[1] :].tolist()


def test_completions_end_with_a_stop_token_or_at_their_limit():
    requests = [*some_requests(4), *some_requests(2, max_new_tokens=3), *some_requests(1, max_new_tokens=99)]
    completions = TransformersEngine(tiny_causal_lm(), batch_size=5).generate(requests, SAMPLING)
    assert {c.is_finished for c in flat(completions)} == {True, False}
    for request, group in zip(requests, completions, strict=True):
        limit = min(24, request.max_new_tokens or 24)
        for completion in group:
            assert not set(completion.ids[:-1]) & set(STOPS)
            assert completion.is_finished == (completion.ids[-1] in STOPS)
            assert completion.is_finished or len(completion.ids) == limit
            assert 1 <= len(completion.ids) == len(completion.logprobs) <= limit


def test_a_prompt_is_read_once_and_rows_hold_nothing_that_is_done():
    model = tiny_causal_lm()
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    requests = [Request([3] * 9, [1, 2, 3]), Request([4] * 8, [4, 5]), Request([3] * 9, [6], max_new_tokens=2)]
    completions = TransformersEngine(model, batch_size=5).generate(requests, SAMPLING)
    assert [shape for shape in shapes if shape[1] > 1] == [(2, 8)]  # all but the last token, one padded
    num_row_steps = sum(rows for rows, width in shapes if width == 1)
    assert num_row_steps == sum(len(c.ids) for c in flat(completions))
    shapes.clear()
    assert [c.ids for c in flat(TransformersEngine(model, batch_size=1).generate(requests, SAMPLING))] == [
        c.ids for c in flat(completions)
    ]
    assert [shape for shape in shapes if shape[1] > 1] == [(1, 8), (1, 7)]


def test_room_that_nothing_was_written_to_is_never_read():
    model = tiny_causal_lm()
    requests = some_requests(num_prompts=6)
    expected = TransformersEngine(model, batch_size=5).generate(requests, SAMPLING)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert TransformersEngine(model, batch_size=5).generate(requests, SAMPLING) == expected
    finally:
        torch.use_deterministic_algorithms(False)


def test_rows_are_fewer_where_they_would_hold_too_many_tokens():
    model = tiny_causal_lm()
    engine = TransformersEngine(model, batch_size=8, max_cached_tokens=100)
    assert engine.num_rows(num_completions=50, capacity=30) == 3
    assert engine.num_rows(num_completions=2, capacity=30) == 2
    assert engine.num_rows(num_completions=50, capacity=1000) == 1
    requests = some_requests()
    assert [c.ids for c in flat(engine.generate(requests, SAMPLING))] == [
        c.ids for c in flat(TransformersEngine(model).generate(requests, SAMPLING))
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_in_training_with_trees_and_an_adapter_is_left_as_it_was(checkpointing):
    model = get_peft_model(tiny_causal_lm(), LoraConfig(r=2, lora_dropout=0.5, init_lora_weights=False))
    assert prepare_for_trees(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    model.base_model.model.lm_head.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    requests = some_requests()
    completions = TransformersEngine(model).generate(requests, SAMPLING)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.config._attn_implementation == "prompt_tree"
    assert_logprobs_are_the_models(model, requests, completions)
    with model.disable_adapter():
        assert TransformersEngine(model).generate(requests, SAMPLING) != completions


@pytest.mark.parametrize("kind", ["every layer", "some layers"])
def test_layers_that_see_a_window_see_no_more(kind):
    if kind == "every layer":
        torch.manual_seed(0)
        sizes = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
        model = MistralForCausalLM(
            MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=6)
        )
    else:
        model = tiny_causal_lm("qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1)
    requests = some_requests()
    assert_logprobs_are_the_models(model, requests, TransformersEngine(model).generate(requests, SAMPLING))


def test_a_cut_support_comes_with_the_completion_and_logprobs_are_over_it():
    model = tiny_causal_lm()
    requests, sampling = some_requests(), Sampling(6, temperature=0.9, top_p=0.8, top_k=10)
    completions = TransformersEngine(model, batch_size=4).generate(requests, sampling)
    for request, group in zip(requests, completions, strict=True):
        for completion in group:
            logits = teacher_forced(model, list(request.prompt_ids), completion.ids) / 0.9
            assert completion.support is not None
            for row, token, logprob, kept in zip(
                logits, completion.ids, completion.logprobs, completion.support, strict=True
            ):
                assert token in kept
                assert 1 <= len(kept) <= 10
                assert set(kept) == set(row.topk(len(kept)).indices.tolist())
                expected = row[token] - row[kept].logsumexp(-1)
                assert_close(torch.tensor(logprob), expected, atol=1e-5, rtol=0)


def test_the_repetition_penalty_counts_prompt_and_completion():
    model = tiny_causal_lm().eval()
    requests = some_requests(num_seeds=1)
    config = GenerationConfig(max_new_tokens=24, do_sample=False, repetition_penalty=1.8, pad_token_id=0)
    sampling = Sampling(24, temperature=0.0, repetition_penalty=1.8)
    completions = TransformersEngine(model, batch_size=2).generate(requests, sampling)
    for request, (completion,) in zip(requests, completions, strict=True):
        prompt = torch.tensor([request.prompt_ids])
        expected = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=config, eos_token_id=None
        )
        assert completion.ids == expected[0, prompt.shape[1] :].tolist()


def test_it_runs_under_the_callers_autocast_and_training_goes_on():
    model = tiny_causal_lm()
    requests = some_requests()
    with torch.autocast("cpu", torch.bfloat16):
        completions = TransformersEngine(model).generate(requests, SAMPLING)
        model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
        assert_logprobs_are_the_models(model, requests, completions, atol=0.3, rtol=0)
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None
    exact = TransformersEngine(model).generate(requests, SAMPLING)
    assert [c.logprobs for c in flat(exact)] != [c.logprobs for c in flat(completions)]


def test_new_weights_are_generated_with():
    old, new = tiny_causal_lm(seed=0), tiny_causal_lm(seed=1)
    engine: RolloutEngine = TransformersEngine(old)
    requests = some_requests()
    engine.sync_weights(new)
    assert_logprobs_are_the_models(new, requests, engine.generate(requests, SAMPLING))
    engine.close()


def test_progress_is_told():
    told: list[tuple[int, int]] = []
    engine = TransformersEngine(tiny_causal_lm(), batch_size=4, on_progress=lambda *numbers: told.append(numbers))
    engine.generate(some_requests(), SAMPLING)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (15, 15)


def test_nothing_asked_gives_nothing():
    engine = TransformersEngine(tiny_causal_lm())
    assert engine.generate([], SAMPLING) == []
    assert engine.generate([Request([3], [])], SAMPLING) == [[]]
