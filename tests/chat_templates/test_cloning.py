import pytest

from tests.chat_templates.dialogues import tokenizer_with
from tests.data.tiny_tokenizers import CHATML, character_tokenizer
from tests.models import tiny_causal_lm, tiny_reward_model
from tuneline import clone_chat_template
from tuneline.errors import ConfigError, ModelError


@pytest.fixture
def source(tmp_path):
    tokenizer = tokenizer_with(CHATML)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


def small():
    tokenizer = character_tokenizer(None)
    return tiny_causal_lm(vocab_size=len(tokenizer)), tokenizer


def state(model, tokenizer, added):
    return {
        "template": tokenizer.chat_template,
        "eos": (tokenizer.eos_token, tokenizer.eos_token_id, model.config.eos_token_id),
        "rows": model.get_input_embeddings().num_embeddings,
        "tokens": sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]),
        "added": sorted(tokenizer.convert_ids_to_tokens(added)),
    }


@pytest.mark.parametrize("multiple", [64, 8, None])
def test_template_tokens_and_rows_are_those_of_trl(source, multiple):
    trl = pytest.importorskip("trl")
    ours, theirs = small(), small()
    got = clone_chat_template(*ours, source, resize_to_multiple_of=multiple)
    expected = trl.clone_chat_template(*theirs, source, resize_to_multiple_of=multiple)
    assert state(*got) == state(*expected)
    assert got[0] is ours[0]
    assert got[1] is ours[1]
    assert got[0].generation_config.eos_token_id == got[1].eos_token_id
    rows = got[0].get_input_embeddings().num_embeddings
    assert len(got[1]) == rows
    assert multiple is None or rows % multiple == 0


def test_an_embedding_with_room_keeps_its_size(source):
    _, tokenizer = small()
    model = tiny_causal_lm(vocab_size=512)
    _, _, added = clone_chat_template(model, tokenizer, source)
    assert model.get_input_embeddings().num_embeddings == 512
    assert "<extra_id_0>" not in tokenizer.get_vocab()
    assert "<think>" in tokenizer.convert_ids_to_tokens(added)


def test_a_reward_model_takes_it_too(source):
    tokenizer = character_tokenizer(None)
    model, tokenizer, _ = clone_chat_template(tiny_reward_model(vocab_size=len(tokenizer)), tokenizer, source)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def test_a_source_without_a_template_is_refused(tmp_path):
    tokenizer_with().save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="that tokenizer has no chat template"):
        clone_chat_template(*small(), str(tmp_path / "bare"))
    with pytest.raises(ModelError, match="cannot load a tokenizer"):
        clone_chat_template(*small(), str(tmp_path / "nowhere"))
