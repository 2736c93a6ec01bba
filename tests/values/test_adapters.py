"""Policy, value, reward and reference as adapters of one base model: each alone, one base in memory."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.rows import character_tokenizer
from tests.trees.test_equality import random_trees
from tests.values.build import build, values_of, with_lora
from tuneline.errors import ModelError
from tuneline.logprobs import token_logprobs
from tuneline.models.adapters import active_adapter, adapter_parameters, adapters_off, add_adapter_beside
from tuneline.models.layouts import prepare_for_trees
from tuneline.rewards import RewardAdapter, RewardFunctions, RewardModel
from tuneline.scores import sequence_scores
from tuneline.trees import Branch, Tree, lay_out
from tuneline.values import logprobs_and_values, policy_and_value

PROMPTS = ["what is 2?", "what is 2?", "and what is 17 to you?"]
COMPLETIONS = ["it is 2.", "no.", "a number"]


def logprobs_of(model, trees):
    with torch.no_grad():
        return token_logprobs(model, trees).logprobs


@pytest.fixture
def saved_base(tmp_path):
    """A causal model's folder, so that a reward model on its backbone can be made."""
    tiny_causal_lm().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def saved_reward(saved_base, tmp_path):
    """What RewardTrainer with a peft_config saves: the adapter, its score head, the tokenizer."""
    base = AutoModelForSequenceClassification.from_pretrained(saved_base, num_labels=1, dtype=torch.float32)
    torch.manual_seed(5)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, task_type="SEQ_CLS"
    )
    model = get_peft_model(base, config)
    torch.nn.init.normal_(model.base_model.model.score.modules_to_save["default"].weight)
    model.save_pretrained(tmp_path / "reward")
    character_tokenizer().save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


def load_reward(saved_base, saved_reward):
    base = AutoModelForSequenceClassification.from_pretrained(saved_base, num_labels=1, dtype=torch.float32)
    return PeftModel.from_pretrained(base, saved_reward).eval()


def test_the_reference_is_the_base_model():
    base, trees = tiny_causal_lm(), lay_out(random_trees())
    prepare_for_trees(base)
    both = build("adapter", policy=with_lora(copy.deepcopy(base)))
    assert not torch.equal(logprobs_of(both, trees), logprobs_of(base, trees))
    with adapters_off(both.policy):
        assert torch.equal(logprobs_of(both, trees), logprobs_of(base, trees))


def test_choosing_an_adapter_leaves_alone_what_is_trained():
    both = build("adapter")
    before = {name: parameter.requires_grad for name, parameter in both.named_parameters()}
    active = both.policy.active_adapters
    with active_adapter(both.policy, "value"):
        assert {name: parameter.requires_grad for name, parameter in both.named_parameters()} == before
    with adapters_off(both.policy):
        assert {name: parameter.requires_grad for name, parameter in both.named_parameters()} == before
    assert {name: parameter.requires_grad for name, parameter in both.named_parameters()} == before
    assert both.policy.active_adapters == active


def test_only_policy_and_value_are_trained(saved_reward):
    both = build("adapter")
    RewardAdapter(saved_reward).attach(both)
    add_adapter_beside(both.policy, "ref", trains=False)
    trained = {name for name, parameter in both.named_parameters() if parameter.requires_grad}
    assert {".default." in name or ".value." in name or name.startswith("value_head.") for name in trained} == {True}
    assert any(".default." in name for name in trained)
    assert any(".value." in name for name in trained)


def step(parameters, loss):
    loss.backward()
    torch.optim.SGD(parameters, lr=0.5).step()


def test_training_the_value_leaves_the_policy_as_it_was(saved_reward):
    both, trees = build("adapter"), lay_out(random_trees())
    reward = RewardAdapter(saved_reward)
    reward.attach(both)
    policy, scores = logprobs_of(both, trees), reward(PROMPTS, COMPLETIONS)
    with adapters_off(both.policy):
        reference = logprobs_of(both, trees)
    _, values = logprobs_and_values(both, trees)
    step([p for p in both.parameters() if p.requires_grad], (values - 1).pow(2).mean())
    assert not torch.equal(values_of(both, trees), values)
    assert torch.equal(logprobs_of(both, trees), policy)
    assert reward(PROMPTS, COMPLETIONS) == scores
    with adapters_off(both.policy):
        assert torch.equal(logprobs_of(both, trees), reference)


def test_training_the_policy_leaves_the_others_as_they_were(saved_reward):
    both, trees = build("adapter"), lay_out(random_trees())
    reward = RewardAdapter(saved_reward)
    reward.attach(both)
    policy, values, scores = logprobs_of(both, trees), values_of(both, trees), reward(PROMPTS, COMPLETIONS)
    with adapters_off(both.policy):
        reference = logprobs_of(both, trees)
    found, _ = logprobs_and_values(both, trees)
    step([p for p in both.parameters() if p.requires_grad], found.logprobs.mean())
    assert not torch.equal(logprobs_of(both, trees), policy)
    assert torch.equal(values_of(both, trees), values)
    assert reward(PROMPTS, COMPLETIONS) == scores
    with adapters_off(both.policy):
        assert torch.equal(logprobs_of(both, trees), reference)


def test_a_policy_is_saved_without_the_adapters_that_served_its_training(saved_reward, tmp_path):
    both, trees = build("adapter"), lay_out(random_trees())
    RewardAdapter(saved_reward).attach(both)
    both.policy.save_pretrained(tmp_path / "policy")
    assert sorted(p.name for p in (tmp_path / "policy").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = PeftModel.from_pretrained(tiny_causal_lm(), tmp_path / "policy")
    prepare_for_trees(loaded)
    assert torch.equal(logprobs_of(loaded, trees), logprobs_of(both, trees))


def test_a_reward_adapter_scores_as_its_own_model_does(saved_base, saved_reward):
    reward = RewardAdapter(saved_reward)
    policy = with_lora(tiny_causal_lm())
    reward.attach(policy)
    expected = RewardModel(load_reward(saved_base, saved_reward), character_tokenizer())
    assert_close(
        torch.tensor(reward(PROMPTS, COMPLETIONS)), torch.tensor(expected(PROMPTS, COMPLETIONS)), atol=1e-5, rtol=1e-5
    )
    assert reward.__name__ == "reward"
    assert policy.active_adapters == ["default"]
    assert policy.training


def test_two_reward_adapters_stand_beside_one_another(saved_reward):
    one, other = RewardAdapter(saved_reward), RewardAdapter(saved_reward)
    policy = with_lora(tiny_causal_lm())
    rewards = RewardFunctions([one, other])
    rewards.attach(policy)
    assert (one.name, other.name) == ("reward", "reward_2")
    pending = rewards.start(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[1], [1], [1]], columns={})
    assert not pending.is_done()  # it waits for the caller's own thread
    scores = pending.result()
    assert pending.is_done()
    assert scores.names == ["reward", "reward_2"]
    assert torch.equal(scores.values[:, 0], scores.values[:, 1])
    assert not scores.values.isnan().any()
    rewards.close()


def test_a_reward_adapter_that_cannot_be_used_says_why(saved_base, saved_reward, tmp_path):
    with pytest.raises(ModelError, match="pass peft_config"):
        RewardAdapter(saved_reward).attach(tiny_causal_lm())
    with pytest.raises(ModelError, match="does not fit the model"):
        RewardAdapter(saved_reward).attach(with_lora(tiny_causal_lm(hidden_size=16)))
    with pytest.raises(ModelError, match="does not fit the model"):
        RewardAdapter(saved_reward).attach(with_lora(tiny_causal_lm(num_hidden_layers=1)))
    with pytest.raises(ModelError, match="on no policy"):
        RewardAdapter(saved_reward)(PROMPTS, COMPLETIONS)
    with pytest.raises(ModelError, match="holds no adapter"):
        RewardAdapter(saved_base, character_tokenizer())
    policy = with_lora(tiny_causal_lm())
    policy.save_pretrained(tmp_path / "policy")
    with pytest.raises(ModelError, match="no score head"):
        RewardAdapter(tmp_path / "policy", character_tokenizer())
    config = json.loads((saved_reward / "adapter_config.json").read_text())
    (saved_reward / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "pissa"}))
    with pytest.raises(ModelError, match="'pissa'"):
        RewardAdapter(saved_reward)


def bytes_held(*modules):
    """Of all parameters, each storage once."""
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for one in modules for p in one.parameters()
    }
    return sum(storages.values())


def test_four_roles_take_the_memory_of_one_base(saved_reward):
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4)
    base = bytes_held(tiny_causal_lm(**sizes))
    policy = get_peft_model(tiny_causal_lm(**sizes), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    both = policy_and_value(policy, form="adapter")
    add_adapter_beside(policy, "reward", trains=False)
    adapters = sum(
        p.numel() * p.element_size()
        for name in ("default", "value", "reward")
        for p in adapter_parameters(policy, name)
    )
    assert bytes_held(both) == base + adapters + 4 * (64 + 1)
    assert bytes_held(both) < 1.1 * base
    apart = [tiny_causal_lm(**sizes), tiny_causal_lm(**sizes), tiny_reward_model(**sizes), tiny_reward_model(**sizes)]
    assert bytes_held(*apart) > 3.9 * base


def test_a_value_function_starts_from_a_saved_reward_adapter(saved_base, saved_reward):
    both = policy_and_value(with_lora(tiny_causal_lm()), form="adapter", value_model=str(saved_reward))
    trees = lay_out([Tree(list(range(2, 8)), [Branch([11, 12, 13]), Branch([21, 22])])])
    expected = sequence_scores(load_reward(saved_base, saved_reward), trees)
    longer = lay_out([Tree(list(range(2, 8)), [Branch([11, 12, 13, 90]), Branch([21, 22, 91])])])
    values = values_of(both, longer)
    assert_close(values[[3, 6]], expected, atol=1e-5, rtol=1e-5)  # of the states before the last tokens
    assert all(parameter.requires_grad for parameter in adapter_parameters(both.policy, "value"))


@pytest.mark.parametrize("start", [None, LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5)])
def test_a_value_adapter_has_no_dropout(start):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3, init_lora_weights=False)
    both = policy_and_value(get_peft_model(tiny_causal_lm(), config), form="adapter", value_model=start)
    torch.nn.init.normal_(both.value_head.weight)
    trees = lay_out(random_trees())
    with torch.no_grad():
        trained, evaluated = values_of(both.train(), trees), values_of(both.eval(), trees)
    assert torch.equal(trained, evaluated)
    assert start is None or start.lora_dropout == 0.5
