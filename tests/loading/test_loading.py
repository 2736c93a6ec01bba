import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from tests.models import tiny_causal_lm
from tests.trainers.rows import character_tokenizer
from tuneline.errors import ConfigError, ModelError
from tuneline.models.loading import (
    add_adapter,
    disable_dropout,
    load_causal_lm,
    load_tokenizer,
    resolve_model,
    set_special_tokens,
    take_chat_template,
)

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_a_folder_stands_for_itself_or_for_the_name_that_its_reference_holds(tmp_path):
    assert resolve_model(tmp_path) == (str(tmp_path), None)
    (tmp_path / "reference.json").write_text(json.dumps({"name_or_path": "Qwen/Qwen2.5-0.5B", "revision": "abc"}))
    assert resolve_model(tmp_path) == ("Qwen/Qwen2.5-0.5B", "abc")


def test_weights_load_in_float32_unless_told_otherwise(tmp_path):
    tiny_causal_lm().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_causal_lm(str(tmp_path)).dtype == torch.float32
    assert load_causal_lm(str(tmp_path), '{"dtype": "bfloat16"}').dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=r"^dtype='float31' is no torch dtype"):
        load_causal_lm(str(tmp_path), {"dtype": "float31"})


def test_pickled_weights_are_refused(tmp_path):
    model = tiny_causal_lm()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load"):
        load_causal_lm(str(tmp_path))


def test_a_missing_model_or_tokenizer_is_named(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        load_causal_lm(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "tomorrows"}')
    with pytest.raises(ModelError, match=r"tomorrows.*\(from its configuration\)"):
        load_causal_lm(str(tmp_path))
    with pytest.raises(ModelError, match="processing_class"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_a_saved_tokenizer_does_not_tell_whether_it_was_loaded_offline(tmp_path):
    character_tokenizer().save_pretrained(tmp_path / "one")
    load_tokenizer(str(tmp_path / "one")).save_pretrained(tmp_path / "two")
    assert "local_files_only" not in json.loads((tmp_path / "two" / "tokenizer_config.json").read_text())


def test_the_end_token_pads_where_nothing_else_does():
    tokenizer = character_tokenizer()
    tokenizer.pad_token = None
    set_special_tokens(tokenizer, "<unk>", None)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<unk>", "<unk>")
    with pytest.raises(ConfigError, match="<end>"):
        set_special_tokens(tokenizer, "<end>", None)


def test_a_chat_template_is_taken_from_a_file_or_from_another_tokenizer(tmp_path):
    model, tokenizer = tiny_causal_lm(), character_tokenizer()
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    take_chat_template(model, tokenizer, str(tmp_path / "chat.jinja"))
    assert tokenizer.chat_template == TEMPLATE
    with pytest.raises(ConfigError, match=r"nowhere\.jinja"):
        take_chat_template(model, tokenizer, str(tmp_path / "nowhere.jinja"))

    source = character_tokenizer()
    source.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    source.eos_token = "<turn>"
    source.chat_template = TEMPLATE
    source.save_pretrained(tmp_path / "source")
    tokenizer = character_tokenizer()
    take_chat_template(model, tokenizer, str(tmp_path / "source"))
    assert tokenizer.eos_token == "<turn>"
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)


def test_dropout_is_off_in_modules_and_in_attention():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).train()
    disable_dropout(model)
    ids = torch.arange(10)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_new_adapter_is_added_on_top_of_the_merged_old_one():
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    old = get_peft_model(tiny_causal_lm(), lora).eval()
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        before = old(ids).logits
        new = add_adapter(old, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
        torch.testing.assert_close(new(ids).logits, before, atol=1e-4, rtol=1e-4)
    assert list(new.peft_config) == ["default"]
