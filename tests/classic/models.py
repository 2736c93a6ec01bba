"""Models and tokenizers for the tests of the older interface."""

import torch
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from tests.models import VOCAB, tiny_causal_lm
from tests.trainers.rows import character_tokenizer
from tuneline.classic.config import ClassicPPOConfig
from tuneline.classic.trainer import StepPPOTrainer
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


def step_trainer(model=None, *, ref_model=None, optimizer=None, lr=None, num_shared_layers=None, **options):
    """A step trainer; with `lr` by plain gradient descent, so that the change of a weight is its gradient."""
    model = with_value_head() if model is None else model
    if lr is not None:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    options = {"accelerator_kwargs": {"cpu": True}, **options}
    return StepPPOTrainer(
        ClassicPPOConfig(**options),
        model,
        ref_model,
        character_tokenizer(),
        optimizer=optimizer,
        num_shared_layers=num_shared_layers,
    )


def some_batch(rows: int = 4, seed: int = 0):
    """Queries and responses of different lengths, two of the queries alike; scores; masks with environments in them."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length):
        return torch.randint(2, VOCAB, (length,), generator=generator)

    queries = [ids(2 + 3 * (i % 3)) for i in range(rows)]
    queries[-1] = queries[0].clone()
    responses = [ids(3 + (5 * i) % 7) for i in range(rows)]
    scores = torch.randn(rows, generator=generator)
    masks = [torch.ones(len(response), dtype=torch.long) for response in responses]
    for mask in masks[1:]:
        mask[1 : len(mask) // 2] = 0
    masks[2][-2:] = 0
    return queries, responses, scores, masks
