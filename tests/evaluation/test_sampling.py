import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from tests.data.tiny_tokenizers import character_tokenizer
from tests.models import tiny_causal_lm
from tuneline.data.formats import as_reply
from tuneline.evaluation.sampling import encode_prompts, sample_completions
from tuneline.models import prepare_for_trees
from tuneline.rollout.readable import why_not_readable
from tuneline.rollout.stopping import stop_token_ids

PROMPTS = ["ab", "a longer prompt", "x", "four", "and the last"]


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    model = tiny_causal_lm("qwen2", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def sample(model, tokenizer, prompts=PROMPTS, **options):
    ids = encode_prompts(tokenizer, {"prompt": prompts})
    settings = {"max_new_tokens": 12, "temperature": 1.0, "seed": 5, "batch_size": 2, **options}
    found = sample_completions(model, tokenizer, ids, **settings)
    return found if "num_completions" in options else [completion for (completion,) in found]


def softcapped_model(tokenizer):
    """One that the engine cannot read."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, head_dim=16)
    config = Gemma2Config(vocab_size=len(tokenizer), num_key_value_heads=1, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert why_not_readable(model)
    return model


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gemma", "gpt2", "gemma2"])
def test_greedy_completions_are_those_of_each_prompt_alone_without_padding(tokenizer, architecture):
    if architecture == "gemma2":
        model = softcapped_model(tokenizer).eval()
    else:
        model = tiny_causal_lm(architecture, **({} if architecture == "gpt2" else {"vocab_size": len(tokenizer)}))
    found = sample(model, tokenizer, temperature=0.0, batch_size=5)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = encode_prompts(tokenizer, {"prompt": [prompt]})[0]
        for token in completion.ids:
            assert token == int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_completions_depend_on_neither_batch_size_nor_what_was_drawn_before(model, tokenizer, temperature):
    expected = sample(model, tokenizer, temperature=temperature, batch_size=1)
    torch.manual_seed(99)
    assert sample(model, tokenizer, temperature=temperature, batch_size=3) == expected
    assert sample(model, tokenizer, PROMPTS[:3], temperature=temperature) == expected[:3]


def test_a_model_that_the_engine_cannot_read_draws_alike_in_any_batch_too(tokenizer):
    model = softcapped_model(tokenizer)
    expected = sample(model, tokenizer, batch_size=1, num_completions=2)
    told = []
    assert sample(model, tokenizer, batch_size=4, num_completions=2, on_progress=told.append) == expected
    assert told == [4, 8, 10]
    assert [first for first, _ in expected] == sample(model, tokenizer)


def test_more_completions_begin_with_those_that_fewer_would_be(model, tokenizer):
    three = sample(model, tokenizer, num_completions=3, batch_size=4)
    assert [group[0] for group in three] == sample(model, tokenizer)
    assert [group[:2] for group in three] == sample(model, tokenizer, num_completions=2)
    assert all(len({tuple(one.ids) for one in group}) > 1 for group in three)


def test_sampling_leaves_the_global_generator_alone(model, tokenizer):
    before = torch.get_rng_state()
    sample(model, tokenizer)
    assert torch.equal(before, torch.get_rng_state())


def test_another_seed_gives_other_samples(model, tokenizer):
    assert sample(model, tokenizer, seed=1) != sample(model, tokenizer, seed=2)


def test_samples_follow_the_softmax_at_the_temperature(model, tokenizer):
    prompt, temperature, n = "ab", 1.7, 3000
    ids = encode_prompts(tokenizer, {"prompt": [prompt]})
    expected = (model(input_ids=torch.tensor(ids)).logits[0, -1] / temperature).softmax(-1)
    drawn = sample(model, tokenizer, [prompt] * n, max_new_tokens=1, temperature=temperature, batch_size=500)
    shares = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=len(expected)) / n
    # every share within five standard errors
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-9).all()


def test_a_completion_ends_with_its_stop_token_or_is_cut_off(model, tokenizer):
    stops = stop_token_ids(model, tokenizer)
    found = sample(model, tokenizer, PROMPTS * 8, max_new_tokens=30, temperature=2.0, batch_size=40)
    assert {c.finished for c in found} == {True, False}
    for completion in found:
        assert not set(completion.ids[:-1]) & set(stops)
        assert completion.finished == (completion.ids[-1] in stops)
        assert completion.finished or completion.num_tokens == 30
        assert "<eos>" not in completion.text
        assert "<|im_end|>" not in completion.text


def test_stops_are_those_of_model_tokenizer_and_chat_template(model, tokenizer):
    names = [tokenizer.convert_ids_to_tokens(i) for i in stop_token_ids(model, tokenizer)]
    assert names == ["<eos>", "<|im_end|>"]
    plain = character_tokenizer(chat_template=None)
    assert stop_token_ids(model, plain) == [plain.eos_token_id]
    # a template that puts ordinary text behind an answer names no stop
    spoken = character_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert stop_token_ids(model, spoken) == [plain.eos_token_id]


def test_the_models_own_generation_settings_are_left_out_and_restored(model, tokenizer):
    expected = sample(model, tokenizer, temperature=0.0)
    model.generation_config.repetition_penalty = 5.0
    try:
        assert sample(model, tokenizer, temperature=0.0) == expected
        assert model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config.repetition_penalty = None


def test_a_model_prepared_for_trees_gives_the_same_completions(model, tokenizer):
    prepared = tiny_causal_lm("qwen2", vocab_size=len(tokenizer))
    prepared.generation_config.eos_token_id = tokenizer.eos_token_id
    assert prepare_for_trees(prepared)
    assert sample(prepared, tokenizer) == sample(model, tokenizer)


def test_dialogues_are_asked_with_the_mark_that_opens_an_answer(tokenizer):
    (ids,) = encode_prompts(tokenizer, {"prompt": [[{"role": "user", "content": "hi"}]]})
    assert tokenizer.decode(ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_reply_is_in_the_notation_of_its_prompt():
    assert as_reply("2+2=", "4") == "4"
    assert as_reply([{"role": "user", "content": "2+2"}], "4") == [{"role": "assistant", "content": "4"}]


def test_progress_is_told_now_and_then_and_at_the_end(model, tokenizer):
    told = []
    sample(model, tokenizer, PROMPTS * 3, num_completions=2, batch_size=8, on_progress=told.append)
    assert told == sorted(set(told))
    assert told[-1] == 30
    assert len(told) <= 4
