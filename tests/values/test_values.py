"""What a value function says of prompt trees is what it says of every sequence on its own, in all three forms."""

import copy

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.testing import assert_close
from transformers import BloomConfig, BloomForCausalLM, BloomForSequenceClassification

from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trees.test_equality import gradients, random_trees, separate_logprobs, weights_for
from tests.values.build import FORMS, build, build_policy, separate_values, values_of, with_lora
from tuneline.errors import ConfigError, ModelError
from tuneline.logprobs import token_logprobs
from tuneline.trees import Branch, Tree, lay_out
from tuneline.values import logprobs_and_values, policy_and_value

ARCHITECTURES = ("qwen2", "llama", "gpt2")


def ask(both, trees):
    found, values = logprobs_and_values(both, lay_out(trees))
    (found.logprobs * weights_for(found.logprobs) + 0.7 * values * weights_for(values).cos()).sum().backward()
    return found.logprobs.detach(), values.detach()


def plain_twin(form, both):
    """The same weights in models that nobody prepared: policy, the model that values are read from, its head."""
    policy, value_model, head = copy.deepcopy((both.policy, both.value_model, both.value_head))
    if form == "model":
        return policy, value_model, value_model.score
    return policy, policy, head


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_gradients_equal_those_of_separate_sequences(architecture, form):
    trees = random_trees()
    both = build(form, architecture)
    policy, read, head = plain_twin(form, both)  # reads padded rows as any model does
    expected_logprobs = separate_logprobs(policy, trees)
    (expected_logprobs * weights_for(expected_logprobs)).sum().backward()
    if form == "adapter":
        activate_value(policy)
    expected = separate_values(form, read, head, trees)
    (0.7 * expected * weights_for(expected).cos()).sum().backward()

    logprobs, values = ask(both, trees)

    assert values.dtype == torch.float32
    assert values.shape == logprobs.shape
    assert_close(logprobs, expected_logprobs, atol=1e-5, rtol=1e-5)
    assert_close(values, expected, atol=1e-5, rtol=1e-5)
    plain = {f"policy.{name}": gradient for name, gradient in gradients(policy).items()}
    if form == "model":
        plain |= {f"value_model.{name}": gradient for name, gradient in gradients(read).items()}
    else:
        plain |= {f"value_head.{name}": gradient for name, gradient in gradients(head).items()}
    found = gradients(both)
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert_close(found[name], gradient, atol=2e-5 * scale, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def activate_value(policy):
    for module in policy.modules():
        if isinstance(module, BaseTunerLayer):
            module._active_adapter = ["value"]


@pytest.mark.parametrize("form", FORMS)
def test_checkpointed_layers_give_the_same_gradients(form):
    trees = random_trees()
    plain, checkpointed = build(form), build(form)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    assert checkpointed.is_gradient_checkpointing
    plain.train(), checkpointed.train()
    for found, expected in zip(ask(checkpointed, trees), ask(plain, trees), strict=True):
        assert torch.equal(found, expected)
    expected = gradients(plain)
    assert gradients(checkpointed).keys() == expected.keys()
    for name, gradient in gradients(checkpointed).items():
        assert_close(gradient, expected[name], atol=1e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_policy_is_at_work_after_a_checkpointed_backward_pass():
    both = build("adapter")
    both.gradient_checkpointing_enable({"use_reentrant": False})
    both.train()
    trees = lay_out(random_trees())
    with torch.no_grad():
        before = token_logprobs(both.policy, trees).logprobs
    ask(both, random_trees())
    with torch.no_grad():
        assert torch.equal(token_logprobs(both.policy, trees).logprobs, before)


@pytest.mark.parametrize("form", FORMS)
def test_values_and_log_probabilities_are_the_same_with_entropies_and_each_alone(form):
    both, trees = build(form), lay_out(random_trees())
    found, values = logprobs_and_values(both, trees, with_entropy=True)
    assert torch.equal(values, values_of(both, trees))
    assert torch.equal(found.logprobs, token_logprobs(both.policy, trees).logprobs)
    assert torch.equal(found.entropies, token_logprobs(both, trees, with_entropy=True).entropies)


@pytest.mark.parametrize(("form", "num_passes"), [("head", 1), ("model", 2), ("adapter", 2)])
def test_a_head_on_the_policy_costs_no_pass_of_its_own(form, num_passes):
    both = build(form)
    calls = []
    for model in (both.policy, both.value_model):
        if model is not None:
            for name, module in model.named_modules():
                if name.endswith("layers.0"):
                    module.register_forward_hook(lambda *_: calls.append(1))
    logprobs_and_values(both, lay_out(random_trees()))
    assert len(calls) == num_passes


@pytest.mark.parametrize("form", FORMS)
def test_tokens_that_the_environment_wrote_have_no_value(form):
    both = build(form)
    prompt, ids = list(range(2, 9)), list(range(20, 28))
    every = values_of(both, lay_out([Tree(prompt, [Branch(ids)])]))
    own = values_of(both, lay_out([Tree(prompt, [Branch(ids, [1, 1, 0, 0, 0, 1, 1, 1])])]))
    assert_close(own, every[[0, 1, 5, 6, 7]], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", ["head", "adapter"])
def test_a_new_value_head_says_zero_and_leaves_the_policy_alone(form):
    both = policy_and_value(build_policy(form), form=form)
    _, values = logprobs_and_values(both, lay_out(random_trees()))
    (values - 1).pow(2).sum().backward()
    assert not values.any()
    assert both.value_head.weight.grad.any()
    assert not any(gradient.any() for name, gradient in gradients(both).items() if name.startswith("policy."))


def test_values_are_float32_under_autocast_and_the_head_is_computed_so():
    both, trees = build("head"), lay_out(random_trees())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, values = logprobs_and_values(both, trees)
    assert values.dtype == found.logprobs.dtype == torch.float32
    assert_close(values, values_of(both, trees), atol=0.2, rtol=0.1)
    assert not torch.equal(values, values.bfloat16().float())


@pytest.mark.parametrize("form", FORMS)
def test_models_that_take_padded_rows_answer_too(form):
    sizes = dict(vocab_size=97, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0, hidden_dropout=0.0)
    torch.manual_seed(0)
    policy, trees = BloomForCausalLM(BloomConfig(**sizes)), random_trees()
    if form == "adapter":
        policy = with_lora(policy)
    value_model = BloomForSequenceClassification(BloomConfig(**sizes, num_labels=1)) if form == "model" else None
    both = policy_and_value(policy, form=form, value_model=value_model).eval()
    if both.value_head is not None:
        nn.init.normal_(both.value_head.weight)
    expected_logprobs = separate_logprobs(both.policy, trees)
    policy, read, head = plain_twin(form, both)
    if form == "adapter":
        activate_value(policy)
    expected = separate_values(form, read, head, trees)
    found, values = logprobs_and_values(both, lay_out(trees))
    assert_close(found.logprobs, expected_logprobs, atol=1e-5, rtol=1e-5)
    assert_close(values, expected, atol=1e-5, rtol=1e-5)


def test_padded_rows_with_two_adapters_refuse_checkpoints():
    policy = with_lora(
        BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4, pad_token_id=0))
    )
    both = policy_and_value(policy, form="adapter").train()
    both.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ModelError, match="gradient_checkpointing=False"):
        logprobs_and_values(both, lay_out(random_trees()))


@pytest.mark.parametrize("form", FORMS)
def test_a_value_function_is_restored_from_its_own_state(form):
    trees = lay_out(random_trees())
    one = build(form)
    state = {name: tensor.clone() for name, tensor in one.value_state_dict().items()}
    expected = values_of(one, trees)
    other = build(form)
    with torch.no_grad():
        for tensor in other.value_state_dict().values():
            tensor.add_(0.1)
    assert not torch.equal(values_of(other, trees), expected)
    other.load_value_state_dict(state)
    assert torch.equal(values_of(other, trees), expected)
    with pytest.raises(ModelError, match="differ in"):
        other.load_value_state_dict({"something": torch.zeros(1)})


@pytest.mark.parametrize(
    ("form", "value_model"),
    [("head", tiny_reward_model), ("model", None), ("adapter", tiny_reward_model), ("critic", None)],
)
def test_a_form_and_a_model_that_do_not_go_together_are_refused(form, value_model):
    with pytest.raises(ConfigError, match=form):
        policy_and_value(build_policy(form), form=form, value_model=value_model and value_model())


def test_models_that_do_not_go_together_are_refused():
    with pytest.raises(ModelError, match="needs a policy with an adapter"):
        policy_and_value(tiny_causal_lm(), form="adapter")
    with pytest.raises(ModelError, match="'value' already"):
        policy_and_value(with_own_value_adapter(), form="adapter", value_model=LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="num_labels=3"):
        policy_and_value(tiny_causal_lm(), form="model", value_model=three_labels())
    with pytest.raises(ModelError, match="no parameter that is trained"):
        policy_and_value(tiny_causal_lm(), form="model", value_model=tiny_reward_model().requires_grad_(False))
    with pytest.raises(ModelError, match="embeds 50 tokens"):
        policy_and_value(tiny_causal_lm(), form="model", value_model=tiny_reward_model(vocab_size=50))
    with pytest.raises(ModelError, match="no value model"):
        policy_and_value(tiny_causal_lm(), form="model", value_model=tiny_causal_lm())


def with_own_value_adapter():
    policy = build_policy("adapter")
    policy.add_adapter("value", LoraConfig(target_modules=["q_proj"]))
    return policy


def test_a_policy_is_given_a_new_value_function_in_place_of_an_earlier_one():
    one = build("adapter")
    other = policy_and_value(one.policy, form="adapter", value_model=LoraConfig(r=2, target_modules=["q_proj"]))
    names = {name for name, _ in other.named_parameters() if ".value." in name}
    assert names
    assert all(".q_proj." in name for name in names)


def three_labels():
    model = tiny_reward_model()
    model.config.num_labels = 3
    return model
