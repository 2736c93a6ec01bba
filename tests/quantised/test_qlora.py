"""QLoRA end to end on a CPU, where bitsandbytes is installed (`make test-quantised`): a base of 4 or 8 bits by its
name, an adapter that trains on it, is saved, loaded onto the whole base, and merged."""

import importlib.util

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.build import QUIET
from tests.trainers.online import num_letters, questions
from tests.trainers.rows import character_tokenizer, demonstrations, preferences
from tests.values.test_adapters import bytes_held
from tuneline import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from tuneline.logprobs import token_logprobs
from tuneline.models.layouts import prepare_for_trees
from tuneline.models.loading import add_adapter

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed; make test-quantised"
)
SIZES = dict(hidden_size=64, intermediate_size=128)
TRAINERS = {
    "sft": (SFTTrainer, SFTConfig, demonstrations, {}, {}),
    "dpo": (DPOTrainer, DPOConfig, preferences, {}, {}),
    "grpo": (
        GRPOTrainer,
        GRPOConfig,
        questions,
        {"num_generations": 4, "max_completion_length": 8, "beta": 0.1},
        {"reward_funcs": num_letters},
    ),
    "reward": (RewardTrainer, RewardConfig, preferences, {}, {}),
}


def quantised(bits):
    return BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=torch.float32)


def quantised_base(folder, bits):
    base = AutoModelForCausalLM.from_pretrained(
        folder / "base", dtype=torch.float32, quantization_config=quantised(bits)
    )
    return add_adapter(base, None)  # as for training: packed for generation, it would compute in bfloat16


def lora(method, **options):
    task = "SEQ_CLS" if method == "reward" else "CAUSAL_LM"
    return LoraConfig(r=4, target_modules="all-linear", task_type=task, **options)


def train(method, folder, bits, **options):
    trainer_class, config, rows, more, given = TRAINERS[method]
    make = tiny_reward_model if method == "reward" else tiny_causal_lm
    make(**SIZES).save_pretrained(folder / "base")
    character_tokenizer().save_pretrained(folder / "base")
    args = config(output_dir=str(folder / "out"), **{**QUIET, "max_steps": 3, "learning_rate": 1e-2, **more, **options})
    trainer = trainer_class(
        str(folder / "base"),
        args=args,
        train_dataset=rows(),
        quantization_config=quantised(bits),
        peft_config=lora(method),
        **given,
    )
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    return trainer, before


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", TRAINERS)
def test_an_adapter_alone_trains_on_a_quantised_base(method, bits, tmp_path):
    trainer, before = train(method, tmp_path, bits)
    whole = (tiny_reward_model if method == "reward" else tiny_causal_lm)(**SIZES)
    assert bytes_held(trainer.model) < 0.8 * bytes_held(whole) + 4 * sum(
        weight.numel() for weight in trainer.model.parameters() if weight.requires_grad
    )
    moved = {
        name for name, weight in trainer.model.named_parameters() if not torch.equal(weight.detach(), before[name])
    }
    assert any("lora_" in name for name in moved)
    assert all("lora_" in name or "score" in name for name in moved)
    assert trainer.state.log_history[0]["grad_norm"] > 0


@pytest.mark.parametrize("bits", [4, 8])
def test_what_was_trained_is_saved_and_fits_the_whole_base(bits, tmp_path):
    trainer, _ = train("sft", tmp_path, bits)
    trainer.save_model(str(tmp_path / "adapter"))
    trees = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    trainer.model.eval()
    with torch.no_grad():
        quantised_says = token_logprobs(trainer.model, trees).logprobs
        again = PeftModel.from_pretrained(quantised_base(tmp_path, bits), tmp_path / "adapter").eval()
        prepare_for_trees(again)
        torch.testing.assert_close(token_logprobs(again, trees).logprobs, quantised_says, atol=1e-4, rtol=1e-4)
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().eval()
        prepare_for_trees(merged)
        says = token_logprobs(merged, trees).logprobs
    # of the same order as the rounding of the base alone: the adapter was trained on the rounded one
    assert (says - quantised_says).abs().mean() < (1.0 if bits == 4 else 0.2)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_reference_of_an_adapter_on_a_quantised_base_is_that_base(bits, tmp_path):
    trainer, _ = train("dpo", tmp_path, bits)
    trees = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    base = quantised_base(tmp_path, bits).eval()
    prepare_for_trees(base)
    with torch.no_grad():
        expected = token_logprobs(base, trees).logprobs
    torch.testing.assert_close(trainer.reference.logprobs(trees), expected, atol=1e-4, rtol=1e-4)
    # on a CPU bitsandbytes multiplies in 8 bits where nothing trains, and in more where something does
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-3 if bits == 4 else 0.05)
