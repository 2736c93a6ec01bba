"""Models with a value head: what a call gives, and what a folder holds."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from tests.classic.models import t5_with_value_head, tiny_t5, with_value_head
from tests.models import ARCHITECTURES, tiny_causal_lm, tiny_reward_model
from tuneline.errors import ConfigError, ModelError
from tuneline.models.value_head import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead


def lora(task_type: str = "CAUSAL_LM") -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type=task_type, init_lora_weights=False)


def ids(rows: int = 2, length: int = 6) -> torch.Tensor:
    return torch.randint(2, 90, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_call_gives_the_models_logits_and_a_value_a_token_of_what_its_head_reads(architecture):
    model = with_value_head(architecture)
    read = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0]))

    logits, loss, values = model(ids(), attention_mask=torch.ones_like(ids()))

    expected = model.pretrained_model(ids()).logits
    assert loss is None
    assert logits.dtype == values.dtype == torch.float32
    assert_close(logits, expected)
    assert values.shape == (2, 6)
    assert_close(values, read[0] @ model.v_head.summary.weight[0] + model.v_head.summary.bias)


def test_labels_give_a_loss_and_half_precision_gives_float32_answers():
    model = with_value_head()
    model.pretrained_model.bfloat16()
    logits, loss, values = model(ids(), labels=ids())
    assert loss.ndim == 0
    assert logits.dtype == values.dtype == torch.float32
    assert model.v_head.summary.weight.dtype == torch.float32


def test_the_cache_is_handed_out_on_request():
    model = with_value_head()
    *_, cache = model(ids(), return_past_key_values=True, use_cache=True)
    assert cache.get_seq_length() == 6
    logits, _, _ = model(ids()[:, :1], past_key_values=cache)
    assert logits.shape[1] == 1


def test_an_encoder_decoder_has_a_value_for_each_token_of_its_decoder():
    model = t5_with_value_head()
    logits, _, values = model(input_ids=ids(), decoder_input_ids=ids(2, 4))
    assert logits.shape[:2] == values.shape == (2, 4)
    assert model.generate(ids(), max_new_tokens=3).shape[0] == 2


def test_a_new_head_is_initialised_as_asked():
    model = tiny_causal_lm()
    torch.manual_seed(0)
    wide = AutoModelForCausalLMWithValueHead.from_pretrained(
        model, v_head_init_strategy="normal", v_head_initializer_range=3.0, summary_dropout_prob=0.25
    )
    assert wide.v_head.dropout.p == 0.25
    assert wide.v_head.summary.bias.item() == 0
    assert 1.5 < wide.v_head.summary.weight.std().item() < 5
    with pytest.raises(ConfigError, match="v_head_init_strategy='best'"):
        AutoModelForCausalLMWithValueHead.from_pretrained(model, v_head_init_strategy="best")


@pytest.mark.parametrize("make", [with_value_head, t5_with_value_head])
def test_a_folder_brings_back_model_and_head_and_is_read_by_transformers_alone(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)

    assert sorted(path.suffix for path in tmp_path.iterdir() if path.stat().st_size > 10_000) == [".safetensors"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {name for name in file.keys() if name.startswith("v_head")} == {  # noqa: SIM118
            "v_head.summary.weight",
            "v_head.summary.bias",
        }
    again = type(model).from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not hasattr(model.pretrained_model, "v_head")
    if make is with_value_head:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert_close(plain(ids()).logits, model(ids())[0])


def test_a_head_in_one_of_several_shards_is_found(tmp_path):
    model = with_value_head()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    again = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path))
    assert torch.equal(again.v_head.summary.weight, model.v_head.summary.weight)


def test_an_adapters_folder_holds_adapter_and_head_and_is_loaded_onto_its_base(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "base", peft_config=lora())
    assert model.is_peft_model
    assert isinstance(model.pretrained_model, PeftModel)
    model.save_pretrained(tmp_path / "adapter")

    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "v_head.safetensors"} <= names
    assert "model.safetensors" not in names
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "adapter", is_trainable=True)
    for one, other in zip(model(ids()), again(ids()), strict=True):
        if one is not None:
            assert_close(one, other)
    assert any(p.requires_grad for n, p in again.named_parameters() if "lora" in n)


def test_a_state_dict_has_the_models_own_names_and_goes_back():
    model, other = with_value_head(seed=0), with_value_head(seed=1)
    state = model.state_dict()
    assert "model.embed_tokens.weight" in state
    assert "v_head.summary.weight" in state
    other.load_state_dict(state)
    assert_close(model(ids())[2], other(ids())[2])
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: value for name, value in state.items() if "v_head" not in name})


def test_what_goes_to_the_hub_is_the_model_with_its_head(monkeypatch):
    model = with_value_head()
    sent = {}

    def push(repo_id, **kwargs):
        sent.update(kwargs, repo_id=repo_id, names=list(model.pretrained_model.state_dict()))

    monkeypatch.setattr(model.pretrained_model, "push_to_hub", push)
    model.push_to_hub("me/policy", commit_message="better", private=True)
    assert sent["repo_id"] == "me/policy"
    assert sent["commit_message"] == "better"
    assert sent["private"]
    assert "v_head.summary.weight" in sent["names"]


def test_older_keywords_of_transformers_are_taken_and_told(tmp_path, caplog):
    tiny_causal_lm().save_pretrained(tmp_path)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert "torch_dtype is called dtype today" in caplog.text


def test_gradient_checkpointing_is_switched_on_and_off():
    model = with_value_head()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_models_of_the_wrong_kind_are_refused_by_name():
    with pytest.raises(ModelError, match="use AutoModelForSeq2SeqLMWithValueHead"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tiny_t5())
    with pytest.raises(ModelError, match="use AutoModelForCausalLMWithValueHead"):
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_causal_lm())
    with pytest.raises(ModelError, match="language-model head"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tiny_reward_model())
    with pytest.raises(ConfigError, match="dtype: for loading by name"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tiny_causal_lm(), dtype=torch.float32)


def test_a_reward_adapter_scores_every_token_and_leaves_the_policy_as_it_was(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "base")
    rewarded = tiny_reward_model()
    rewarded.model.load_state_dict(tiny_causal_lm().model.state_dict())
    reward_model = get_peft_model(rewarded, lora("SEQ_CLS"))
    reward_model.save_pretrained(tmp_path / "reward")
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        tmp_path / "base", peft_config=lora(), reward_adapter=tmp_path / "reward"
    )
    before = model(ids())[0]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}

    scores = model.compute_reward_score(ids(), attention_mask=torch.ones_like(ids()))

    assert scores.shape == (2, 6, 1)
    assert_close(scores[:, -1], reward_model.eval()(ids()).logits)
    assert torch.equal(model(ids())[0], before)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert any("lora" in name for name in trained)
    assert not any("reward" in name for name in trained)


def test_a_score_without_a_reward_adapter_says_what_is_missing():
    with pytest.raises(ConfigError, match="give reward_adapter="):
        with_value_head().compute_reward_score(ids())
    with pytest.raises(ConfigError, match="give peft_config"):
        with_value_head(reward_adapter="anywhere")
