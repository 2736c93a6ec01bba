"""Models and tokenizers made on the machine: the same from the same seed, with a chat template for trainers."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuneline.data.rendering import Rows as RenderedRows
from tuneline.data.rendering import tokenize_with_assistant_masks
from tuneline.data.synthetic import make_rows
from tuneline.errors import ConfigError
from tuneline.models.tiny import SPECIAL_TOKENS, make_model, make_tokenizer

ROOT = Path(__file__).parents[2]
SIZES = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TEXTS = [row["prompt"][0]["content"] for row in make_rows("demonstrations", 200, seed=1)]
DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 347 + 5?"},
    {"role": "assistant", "content": "352"},
    {"role": "user", "content": "Sort these digits: 7 2 9"},
    {"role": "assistant", "content": "2 7 9"},
]
KINDS = [("characters", None), ("bpe", 320)]


def fingerprint(model, tokenizer):
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for weight in model.state_dict().values():
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(("kind", "vocab_size"), KINDS)
def test_the_same_seed_gives_the_same_weights_and_tokenizer_and_another_seed_others(kind, vocab_size):
    init = {**SIZES, "tokenizer": kind} | ({"vocab_size": vocab_size} if vocab_size else {})
    first = fingerprint(*make_model(init, 5, TEXTS))
    assert fingerprint(*make_model(init, 5, TEXTS)) == first
    assert fingerprint(*make_model(init, 6, TEXTS)) != first


def test_a_bpe_vocabulary_is_the_same_in_another_process():
    code = (
        "import hashlib; from tuneline.data.synthetic import make_rows; "
        "from tuneline.models.tiny import make_tokenizer; "
        "texts = [row['prompt'][0]['content'] for row in make_rows('demonstrations', 200, seed=1)]; "
        "print(hashlib.sha256(make_tokenizer('bpe', 320, texts).backend_tokenizer.to_str().encode()).hexdigest())"
    )
    other = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip()
    here = make_tokenizer("bpe", 320, TEXTS).backend_tokenizer.to_str()
    assert other == hashlib.sha256(here.encode()).hexdigest()


def test_making_a_model_leaves_the_random_generator_as_it_was():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make_model(SIZES, 5)
    assert torch.equal(torch.rand(3), expected)


def test_the_quickstarts_policy_has_at_most_three_million_parameters():
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    model, tokenizer = make_model(config["model"]["init"], 17, TEXTS)
    assert model.config.model_type == "qwen2"
    assert model.num_parameters() <= 3_000_000
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize(("kind", "vocab_size"), KINDS)
def test_padding_end_and_turns_are_different_tokens(kind, vocab_size):
    tokenizer = make_tokenizer(kind, vocab_size, TEXTS)
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert len(set(ids)) == len(SPECIAL_TOKENS)
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3


@pytest.mark.parametrize(("kind", "vocab_size"), KINDS)
def test_the_beginning_of_a_dialogue_is_the_beginning_of_its_tokens(kind, vocab_size):
    tokenizer = make_tokenizer(kind, vocab_size, TEXTS)
    whole = tokenizer.apply_chat_template(DIALOGUE)["input_ids"]
    for n in range(1, len(DIALOGUE)):
        start = tokenizer.apply_chat_template(DIALOGUE[:n])["input_ids"]
        assert whole[: len(start)] == start
        if DIALOGUE[n]["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(DIALOGUE[:n], add_generation_prompt=True)["input_ids"]
            assert whole[: len(prompt)] == prompt


def test_the_template_marks_what_the_assistant_says_and_its_end():
    tokenizer = make_tokenizer("characters")
    ids, masks = tokenize_with_assistant_masks(tokenizer, RenderedRows({"messages": [DIALOGUE]}, [0]), [DIALOGUE])
    said = [token for token, mask in zip(ids[0], masks[0], strict=True) if mask]
    assert tokenizer.decode(said) == "352<|end|>2 7 9<|end|>"


def test_the_template_refuses_a_role_that_has_no_token():
    with pytest.raises(Exception, match="unknown role narrator; use system, user, assistant or tool"):
        make_tokenizer("characters").apply_chat_template([{"role": "narrator", "content": "Once"}])


@pytest.mark.parametrize(("kind", "vocab_size"), KINDS)
def test_digits_stand_alone_and_nothing_is_lost(kind, vocab_size):
    tokenizer = make_tokenizer(kind, vocab_size, TEXTS)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("What is 347 + 5?")["input_ids"])
    assert [token for token in tokens if token.isdigit()] == ["3", "4", "7", "5"]
    text = "sum of 12\n\n\tété 東京 ok"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


# transformers replaces what a saved tokenizer does before its merges by the model type's own (Qwen2's for qwen2)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "gemma", "gpt2", "mistral", "phi3"])
@pytest.mark.parametrize(("kind", "vocab_size"), KINDS)
def test_the_saved_folder_gives_the_same_model_and_tokens_back(model_type, kind, vocab_size, tmp_path):
    init = {**SIZES, "model_type": model_type, "tokenizer": kind} | ({"vocab_size": vocab_size} if vocab_size else {})
    if model_type == "gpt2":
        del init["intermediate_size"], init["num_key_value_heads"]
    model, tokenizer = make_model(init, 5, TEXTS)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, again = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert len(again) == len(tokenizer)
    assert again.apply_chat_template(DIALOGUE)["input_ids"] == tokenizer.apply_chat_template(DIALOGUE)["input_ids"]
    assert again("It's  347.\n\nété")["input_ids"] == tokenizer("It's  347.\n\nété")["input_ids"]
    assert (again.pad_token_id, again.eos_token_id) == (loaded.config.pad_token_id, loaded.config.eos_token_id)
    assert loaded.generation_config.eos_token_id == again.eos_token_id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hiden_size": 32}, r"qwen2 has no field 'hiden_size' \(nearest: 'hidden_size'\)"),
        (
            {"model_type": "qwen22"},
            r"'qwen22' is no causal language model of transformers \(nearest: 'qwen2'\)",
        ),
        ({"model_type": "t5"}, "model_type='t5' is no causal language model"),
        ({"hidden_size": "big"}, "make no qwen2 model: .*hidden_size"),
        ({"num_key_value_heads": 3}, "these sizes make no qwen2 model"),
        ({"tokenizer": "words"}, "tokenizer='words' is unknown; use 'characters' or 'bpe'"),
        ({"tokenizer": "bpe", "vocab_size": 100}, "vocab_size=100: a bpe tokenizer needs at least 263"),
        ({"tokenizer": "bpe", "vocab_size": 300}, "learns from texts, and there are none"),
        ({"vocab_size": 300}, "a characters tokenizer has as many tokens as there are characters"),
    ],
)
def test_settings_that_make_no_model_are_errors(change, message):
    with pytest.raises(ConfigError, match=message):
        make_model({**SIZES, **change}, 5)
