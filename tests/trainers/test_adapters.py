"""Adapters of every kind train, are saved, come back and are merged; what cannot work is told before training."""

import functools
import importlib.util
import math
import types

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch.testing import assert_close
from transformers import BitsAndBytesConfig
from transformers.utils import is_liger_kernel_available

from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.build import build, weights
from tests.trainers.online import build_online
from tests.trainers.taught import build_taught
from tuneline.errors import ConfigError, ModelError
from tuneline.logprobs import sum_by_sequence, token_logprobs
from tuneline.models.adapters import adapters_off, check_adapter_acts
from tuneline.models.layouts import prepare_for_trees
from tuneline.rollout.protocol import Request, Sampling
from tuneline.rollout.transformers_engine import TransformersEngine
from tuneline.trees import pad_out

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "up_proj"], "task_type": "CAUSAL_LM"}
KINDS = {
    "lora": LoraConfig(**LORA),
    "dora": LoraConfig(**LORA, use_dora=True),
    "rslora": LoraConfig(**LORA, use_rslora=True, lora_alpha=8),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}
PROMPTS = ["prompt", "p-tuning", "prefix"]
FAST = {"max_steps": 4, "learning_rate": 3e-2, "gradient_checkpointing": False}


def batch_of(trainer):
    return next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))


@torch.no_grad()
def logprobs_of(model, trees):
    model.eval()
    return token_logprobs(model, trees).logprobs


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_trains_alone_is_saved_and_comes_back(kind, method, tmp_path):
    torch.manual_seed(0)
    trainer = build(method, tmp_path, options=FAST, peft_config=KINDS[kind])
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("lora_" in name or "prompt_encoder" in name for name in moved)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "saved"))
    trees = batch_of(trainer)
    back = PeftModel.from_pretrained(tiny_causal_lm(), tmp_path / "saved")
    prepare_for_trees(back)
    assert_close(logprobs_of(back, trees), logprobs_of(trainer.model, trees), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
def test_a_merged_adapter_answers_as_the_model_with_it(kind, tmp_path):
    trainer = build("sft", tmp_path, options=FAST, peft_config=KINDS[kind])
    trainer.train()
    trees = batch_of(trainer)
    expected = logprobs_of(trainer.model, trees)
    merged = trainer.model.merge_and_unload()
    assert not isinstance(merged, PeftModel)
    assert_close(logprobs_of(merged, trees), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", PROMPTS)
def test_virtual_tokens_come_before_every_sequence(kind, tmp_path):
    """Against a plain call of PEFT's model, a sequence at a time."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_causal_lm(), KINDS[kind]).eval()
    assert not prepare_for_trees(model)
    trees = batch_of(build("dpo", tmp_path, options={"max_steps": 1}))
    rows = pad_out(trees, 0)
    found = logprobs_of(model, trees)
    with torch.no_grad():
        for i in range(trees.num_sequences):
            ids = rows.input_ids[i][rows.attention_mask[i].bool()]
            logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0]
            own = trees.sequence_ids == i
            expected = logits[-len(ids) :].log_softmax(-1)[rows.target_columns[own], trees.target_ids[own]]
            assert_close(found[own], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", PROMPTS)
def test_the_reference_of_virtual_tokens_is_the_model_without_them(kind, tmp_path):
    torch.manual_seed(0)
    trainer = build("dpo", tmp_path, options={**FAST, "max_steps": 1}, peft_config=KINDS[kind])
    trees = batch_of(trainer)
    plain = tiny_causal_lm()
    prepare_for_trees(plain)
    expected = logprobs_of(plain, trees)
    assert_close(trainer.reference.logprobs(trees), expected, atol=1e-4, rtol=1e-4)
    trainer.train()
    assert_close(trainer.reference.logprobs(trees), expected, atol=1e-4, rtol=1e-4)
    assert (logprobs_of(trainer.model, trees) - expected).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_going_on_with_an_adapter_the_reference_is_a_frozen_copy_of_it(kind, tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(tiny_causal_lm(), KINDS[kind])
    first = build("sft", tmp_path / "first", options=FAST, model=model)
    first.train()
    trees = batch_of(build("dpo", tmp_path))
    as_it_came = logprobs_of(model, trees)
    with torch.no_grad(), adapters_off(model):
        assert (token_logprobs(model, trees).logprobs - as_it_came).abs().max() > 0.01
    trainer = build("dpo", tmp_path / "second", options=FAST, model=model)
    assert_close(trainer.reference.logprobs(trees), as_it_came, atol=1e-5, rtol=1e-5)
    trainer.train()
    assert_close(trainer.reference.logprobs(trees), as_it_came, atol=1e-5, rtol=1e-5)
    assert (logprobs_of(model, trees) - as_it_came).abs().max() > 1e-3
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the policy was its reference


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_a_precomputed_reference_of_a_new_adapter_is_the_model_without_it(kind, tmp_path):
    config = LoraConfig(**LORA, init_lora_weights=False) if kind == "lora" else KINDS[kind]
    options = {"precompute_ref_log_probs": True, "max_steps": 1}
    trainer = build("dpo", tmp_path, options=options, peft_config=config)
    batch = batch_of(trainer)
    plain = tiny_causal_lm()
    prepare_for_trees(plain)
    expected = sum_by_sequence(logprobs_of(plain, batch), batch)
    assert_close(trainer.ref_logps(batch), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", ["prompt", "p-tuning"])
def test_completions_are_drawn_after_virtual_tokens(kind):
    """The sampler's probabilities are those of PEFT's model, for prompts of any length, one token too."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_causal_lm(), KINDS[kind]).eval()
    prompts = [[5, 6, 7, 8], [9], [5, 6]]
    requests = [Request(ids, [3 * i, 3 * i + 1]) for i, ids in enumerate(prompts)]
    drawn = TransformersEngine(model).generate(requests, Sampling(max_new_tokens=6))
    for prompt, group in zip(prompts, drawn, strict=True):
        for one in group:
            ids = torch.tensor([[*prompt, *one.ids]])
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(one.ids) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None])[:, 0]
            assert_close(torch.tensor(one.logprobs), expected, atol=1e-4, rtol=1e-4)
    with adapters_off(model):
        without = TransformersEngine(model).generate(requests, Sampling(max_new_tokens=6))
    assert [one.ids for group in without for one in group] != [one.ids for group in drawn for one in group]


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_learned_prompt_is_rewarded_against_the_model_without_it(method, tmp_path):
    torch.manual_seed(0)
    trainer = build_online(
        method, tmp_path, peft_config=KINDS["prompt"], beta=0.05, max_steps=2, learning_rate=1e-2, num_iterations=2
    )
    before = weights(trainer)
    trainer.train()
    moved = {name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    assert moved
    assert all("prompt_encoder" in name for name in moved)
    assert trainer.state.log_history[0]["kl"] != 0  # a drawn prompt is not the base


# What has no effect


def test_an_adapter_loaded_for_use_is_told(tmp_path):
    get_peft_model(tiny_causal_lm(), KINDS["lora"]).save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(tiny_causal_lm(), tmp_path / "adapter")
    with pytest.raises(ConfigError, match="is_trainable=True"):
        build("sft", tmp_path, model=model)


def test_a_disabled_adapter_is_told(tmp_path):
    model = get_peft_model(tiny_causal_lm(), KINDS["lora"])
    model.base_model.disable_adapter_layers()
    with pytest.raises(ConfigError, match="enable_adapter_layers"):
        build("sft", tmp_path, model=model)


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_an_adapter_that_no_gradient_reaches_is_told(method, tmp_path):
    model = tiny_causal_lm()
    model.model.layers[1].mlp.unused = torch.nn.Linear(32, 32)
    config = LoraConfig(r=2, target_modules=["unused"], task_type="CAUSAL_LM")
    make = build_online if method == "grpo" else build
    with pytest.raises(ConfigError, match=r"no effect on what .* target_modules are \['unused'\]"):
        make(method, tmp_path, model=model, peft_config=config)


def test_a_head_that_is_new_does_not_hide_an_adapter_without_effect(tmp_path):
    model = tiny_reward_model()
    model.model.layers[0].mlp.unused = torch.nn.Linear(32, 32)
    config = LoraConfig(r=2, target_modules=["unused"], task_type="SEQ_CLS")
    with pytest.raises(ConfigError, match="no effect"):
        build("reward", tmp_path, model=model, peft_config=config)


def test_modules_that_the_model_has_not_are_told_with_those_that_it_has(tmp_path):
    config = LoraConfig(target_modules=["query_key_value"], task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match=r"query_key_value.*down_proj, gate_proj, k_proj"):
        build("sft", tmp_path, peft_config=config)


def test_the_check_leaves_random_numbers_modes_and_gradients_alone():
    model = get_peft_model(tiny_causal_lm(), LoraConfig(**LORA, lora_dropout=0.5)).train()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    check_adapter_acts(model)
    assert torch.equal(torch.rand(1), expected)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


# What virtual tokens cannot be used for


@pytest.mark.parametrize(
    ("method", "task", "reason"),
    [("reward", "SEQ_CLS", "a score is read at"), ("prm", "TOKEN_CLS", "labels are read at")],
)
def test_where_virtual_tokens_have_no_place_is_told(method, task, reason, tmp_path):
    with pytest.raises(ConfigError, match=f"virtual tokens.*{reason}"):
        build(method, tmp_path, peft_config=PromptTuningConfig(num_virtual_tokens=2, task_type=task))


def test_methods_that_do_not_serve_virtual_tokens_say_so(tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match="GKD asks about tokens"):
        build_taught("GKD", tmp_path, peft_config=config)
    with pytest.raises(ModelError, match="PREFIX_TUNING"):
        build_online("grpo", tmp_path, peft_config=KINDS["prefix"])


def test_prefixes_and_checkpointing_contradict_each_other(tmp_path):
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        build("sft", tmp_path, peft_config=KINDS["prefix"], options={"gradient_checkpointing": True})


def test_a_learned_prompt_is_not_merged_silently(tmp_path):
    model = get_peft_model(tiny_causal_lm(), KINDS["prompt"])
    with pytest.raises(ConfigError, match="cannot be merged"):
        build("sft", tmp_path, model=model, peft_config=KINDS["lora"])


# Quantised bases, kernels, and models that others have patched


def test_how_to_quantise_a_model_that_is_loaded_already_is_refused(tmp_path):
    for method in ("sft", "dpo"):
        with pytest.raises(ConfigError, match="loaded already"):
            build(method, tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization_config": BitsAndBytesConfig(load_in_4bit=True)}, "bitsandbytes"),
        ({"use_kernels": True}, "kernels"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_option_that_wants_it(options, message, tmp_path):
    if importlib.util.find_spec(message):
        pytest.skip(f"{message} is installed")
    tiny_causal_lm().save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match=rf"{message}.*from {next(iter(options))}"):
        build("sft", tmp_path, model=str(tmp_path / "base"), options={"model_init_kwargs": options})


@pytest.mark.skipif(is_liger_kernel_available(), reason="liger-kernel is installed")
def test_liger_without_its_package_is_told(tmp_path):
    with pytest.raises(ConfigError, match="liger-kernel, which is not installed"):
        build("sft", tmp_path, options={"use_liger_kernel": True})


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_model_whose_forward_was_patched_trains_as_a_plain_one(method, tmp_path):
    """As Unsloth does it: a PeftModel whose layers' and whose own forward are other functions on the instance."""
    outcomes = []
    for is_patched in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(tiny_causal_lm(), KINDS["lora"])
        calls = []
        if is_patched:
            base = model.get_base_model()
            for module in (base, base.model, *base.model.layers):
                module.forward = types.MethodType(patched(type(module).forward, calls), module)
        trainer = build(method, tmp_path / str(is_patched), options=FAST, model=model)
        trainer.train()
        assert bool(calls) == is_patched
        outcomes.append(weights(trainer))
    assert all(torch.equal(weight, outcomes[1][name]) for name, weight in outcomes[0].items())


def patched(forward, calls):
    @functools.wraps(forward)
    def other(self, *args, **kwargs):
        calls.append(type(self).__name__)
        return forward(self, *args, **kwargs)

    return other
