"""Frozen copies, whole or with shared layers."""

import pytest
import torch

from tests.classic.models import some_batch, step_trainer, t5_with_value_head, tiny_t5, with_value_head
from tests.models import ARCHITECTURES, tiny_causal_lm
from tuneline.errors import ConfigError, ModelError
from tuneline.models.reference_model import create_reference_model


def shared_names(model, reference):
    pairs = zip(model.named_parameters(), reference.named_parameters(), strict=True)
    return {name for (name, own), (_, other) in pairs if own.data_ptr() == other.data_ptr()}


def test_a_reference_is_a_frozen_copy_in_evaluation_mode():
    model = tiny_causal_lm().train()
    reference = create_reference_model(model)
    assert not shared_names(model, reference)
    assert not reference.training
    assert model.training
    assert not any(p.requires_grad for p in reference.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_layers_are_the_same_memory_and_frozen_in_both(architecture):
    model = tiny_causal_lm(architecture)
    reference = create_reference_model(model, num_shared_layers=1)
    shared = shared_names(model, reference)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert shared == frozen
    assert any(".0." in name for name in shared)
    assert any("embed" in name or "wte" in name for name in shared)
    assert not any(".1." in name for name in shared)
    assert not any(p.requires_grad for p in reference.parameters())


def test_layers_are_found_in_a_model_with_a_value_head_and_by_a_pattern():
    model = with_value_head("gpt2")
    by_itself = shared_names(model, create_reference_model(model, num_shared_layers=2))
    model = with_value_head("gpt2")
    by_pattern = shared_names(model, create_reference_model(model, 2, pattern="transformer.h.{layer}"))
    assert by_itself == by_pattern
    assert "pretrained_model.transformer.h.1.mlp.c_proj.weight" in by_pattern
    assert "pretrained_model.transformer.ln_f.weight" not in by_pattern


def test_an_encoder_decoder_shares_its_encoder_first():
    model = tiny_t5()
    shared = shared_names(model, create_reference_model(model, num_shared_layers=1))
    assert any(name.startswith("encoder.block.0") for name in shared)
    assert not any(name.startswith(("encoder.block.1", "decoder.block")) for name in shared)


def test_what_there_is_not_is_named():
    model = tiny_causal_lm()
    with pytest.raises(ConfigError, match="num_shared_layers=3"):
        create_reference_model(model, num_shared_layers=3)
    with pytest.raises(ConfigError, match="num_shared_layers=0"):
        create_reference_model(model, num_shared_layers=0)
    with pytest.raises(ConfigError, match=r"pattern='h\.\{layer\}' fits no parameter"):
        create_reference_model(model, 1, pattern="h.{layer}")
    with pytest.raises(ModelError, match="name them by pattern"):
        create_reference_model(torch.nn.Linear(2, 2), 1)


def test_sharded_parameters_are_not_copied(monkeypatch):
    monkeypatch.setattr("tuneline.models.reference_model.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ModelError, match="ZeRO-3"):
        create_reference_model(tiny_causal_lm())


def test_learning_leaves_shared_layers_and_the_reference_alone():
    model = with_value_head()
    trainer = step_trainer(model, lr=0.1, num_shared_layers=1, batch_size=4, mini_batch_size=4, ppo_epochs=1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    reference = {name: p.clone() for name, p in trainer.ref_model.named_parameters()}
    trainer.step(*some_batch()[:3])
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(p, reference[name]) for name, p in trainer.ref_model.named_parameters())


def test_an_encoder_decoder_with_a_value_head_has_a_reference_too():
    model = t5_with_value_head()
    assert not shared_names(model, create_reference_model(model))
