"""Models and tokenizers for the tests of the older interface."""

import torch
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from tests.models import VOCAB, tiny_causal_lm
from tuneline.models.value_head import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead


def tiny_t5(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCAB,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    return T5ForConditionalGeneration(config)


def with_value_head(architecture: str = "qwen2", seed: int = 0, **kwargs) -> AutoModelForCausalLMWithValueHead:
    policy = tiny_causal_lm(architecture, seed)
    return AutoModelForCausalLMWithValueHead.from_pretrained(policy, v_head_init_strategy="normal", **kwargs)


def t5_with_value_head(seed: int = 0) -> AutoModelForSeq2SeqLMWithValueHead:
    return AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5(seed), v_head_init_strategy="normal")
