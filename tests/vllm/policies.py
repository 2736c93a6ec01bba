"""Policies that vLLM's CPU kernels can run."""

import torch

from tuneline.models.tiny import make_model


def tiny_policy(seed=0, **sizes):
    """A Qwen2 whose heads are as wide as vLLM's CPU kernels want them, and its tokenizer."""
    init = dict(
        model_type="qwen2",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model, tokenizer = make_model({**init, **sizes}, seed)
    perturb(model, 0.2, seed)
    return model.eval(), tokenizer


def perturb(model, size, seed):
    """Larger weights than at initialisation: a peaked distribution shows what is wrong."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
