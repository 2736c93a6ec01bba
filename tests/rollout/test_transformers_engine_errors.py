"""What the transformers engine refuses, before it generates anything."""

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel, GPTJConfig, GPTJForCausalLM, T5Config, T5ForConditionalGeneration

from tests.models import VOCAB, tiny_causal_lm
from tuneline.errors import ConfigError, DataError, ModelError, RolloutError
from tuneline.rollout.protocol import Request, Sampling
from tuneline.rollout.transformers_engine import TransformersEngine

SAMPLING = Sampling(max_new_tokens=8)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], [0]), "request 1: the prompt is empty"),
        (Request([3] * 121, [0]), "121 tokens and 8 new ones are 129, and the model's max_position_embeddings is 128"),
        (Request([3, VOCAB], [0]), f"token {VOCAB} is not among the model's {VOCAB}"),
        (Request([-1, 3], [0]), "token -1 is not among"),
    ],
)
def test_prompts_that_cannot_be_completed_are_an_error(request_, message):
    model = tiny_causal_lm()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it generated"))
    with pytest.raises(DataError, match=message):
        TransformersEngine(model).generate([Request([3], [0]), request_], SAMPLING)


def test_a_prompt_that_just_fits_is_completed():
    request = Request([3] * 120, [0])
    assert len(TransformersEngine(tiny_causal_lm()).generate([request], SAMPLING)[0][0].ids) == 8


def test_a_limit_below_one_is_an_error():
    with pytest.raises(ConfigError, match="request 0: max_new_tokens=0"):
        TransformersEngine(tiny_causal_lm()).generate([Request([3], [0], max_new_tokens=0)], SAMPLING)
    with pytest.raises(ConfigError, match="top_p=2"):
        TransformersEngine(tiny_causal_lm()).generate([], Sampling(8, top_p=2))


@pytest.mark.parametrize("size", ["batch_size", "max_cached_tokens", "prefill_tokens"])
def test_sizes_below_one_are_an_error(size):
    with pytest.raises(ConfigError, match=f"{size}=0"):
        TransformersEngine(tiny_causal_lm(), **{size: 0})


def test_weights_that_diverged_are_an_error_and_leave_the_model_as_it_was():
    model = tiny_causal_lm().train()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(RolloutError, match="not finite"):
        TransformersEngine(model).generate([Request([3], [0])], SAMPLING)
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == "sdpa"


def test_models_that_cannot_be_read_are_an_error_with_the_reason():
    sizes = dict(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    bert = BertConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    gptj = GPTJConfig(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, bos_token_id=1, eos_token_id=1)
    tuned = get_peft_model(tiny_causal_lm(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    cases = [
        (T5ForConditionalGeneration(T5Config(**sizes)), "encoder-decoder"),
        (BertModel(bert), "no language-model head"),
        (GPTJForCausalLM(gptj), "AttentionInterface"),
        (tuned, "PREFIX_TUNING"),
        (nn.Linear(2, 2), "no model of transformers"),
    ]
    for model, reason in cases:
        with pytest.raises(ModelError, match=reason):
            TransformersEngine(model)
