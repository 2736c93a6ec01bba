"""The policy's weights by their names in a checkpoint, whatever wraps it."""

import json

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.models import ARCHITECTURES, tiny_causal_lm
from tuneline.errors import ModelError
from tuneline.models.layouts import prepare_for_trees
from tuneline.rollout.vllm_weights import WeightFolder, checkpoint_tensors, plain_lora

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def adapted(*, is_tied=True, **settings):
    torch.manual_seed(1)
    config = LoraConfig(**{**dict(r=4, target_modules=["q_proj", "o_proj", "down_proj"]), **settings})
    model = get_peft_model(tiny_causal_lm(tie_word_embeddings=is_tied), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_are_those_of_a_saved_checkpoint(architecture, tmp_path):
    model = tiny_causal_lm(architecture)
    model.save_pretrained(tmp_path)
    prepare_for_trees(model)
    tensors = checkpoint_tensors(model)
    saved = load_file(tmp_path / "model.safetensors")
    assert tensors.keys() == saved.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["norm"]},
        {"rank_pattern": {"q_proj": 2}},
        {"target_modules": "all-linear"},
    ],
)
def test_merged_weights_compute_what_the_adapted_model_does_and_leave_it_alone(settings):
    model = adapted(**settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):
        merged = tiny_causal_lm(seed=7).eval()
        tensors = checkpoint_tensors(model)
        assert tensors.keys() == checkpoint_tensors(merged).keys()
        merged.load_state_dict(tensors, strict=False)
        with torch.no_grad():
            assert_close(merged(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_under_an_adapter_are_those_it_was_put_on():
    plain = dict(tiny_causal_lm().named_parameters())
    under = checkpoint_tensors(adapted(modules_to_save=["norm"]), merged=False)
    assert under.keys() == plain.keys()
    assert all(torch.equal(under[name], tensor) for name, tensor in plain.items())


def test_an_adapter_that_changes_no_weights_is_refused():
    model = get_peft_model(tiny_causal_lm(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="changes no weights"):
        checkpoint_tensors(model)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_an_adapter_that_unties_two_weights_is_refused():
    with pytest.raises(ModelError, match=r"lm_head.weight no longer is the other's"):
        checkpoint_tensors(adapted(target_modules=["embed_tokens"]))


def test_quantised_weights_are_refused():
    model = tiny_causal_lm()
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"up_proj.weight is torch.int8: quantised"):
        checkpoint_tensors(model)


def test_what_vllm_can_run_beside_the_base_weights_is_told_apart():
    assert plain_lora(adapted()) is not None
    assert plain_lora(adapted(use_rslora=True)) is not None
    assert plain_lora(tiny_causal_lm()) is None
    for settings in (
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["norm"]},
        {"rank_pattern": {"q_proj": 2}},
        {"target_modules": ["embed_tokens"], "is_tied": False},
    ):
        assert plain_lora(adapted(**settings)) is None, settings
    ia3 = IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])
    assert plain_lora(get_peft_model(tiny_causal_lm(), ia3)) is None
    also_trained = adapted()
    also_trained.base_model.model.model.norm.weight.requires_grad_(True)
    assert plain_lora(also_trained) is None


def test_an_adapter_is_written_as_peft_writes_it(tmp_path):
    model = adapted(init_lora_weights="gaussian")
    folder = WeightFolder(tmp_path / "")
    path = folder.write_adapter(model, plain_lora(model))
    model.save_pretrained(tmp_path / "peft")
    ours, theirs = (load_file(p / "adapter_model.safetensors") for p in (path, tmp_path / "peft"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    settings = json.loads((path / "adapter_config.json").read_text())
    assert (settings["r"], settings["peft_type"], settings["init_lora_weights"]) == (4, "LORA", True)
    assert sorted(settings["target_modules"]) == ["down_proj", "o_proj", "q_proj"]
    folder.close()
    assert not path.exists()
