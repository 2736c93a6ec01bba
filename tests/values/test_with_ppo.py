"""PPO from end to end with a value function of each form, and with all four roles on one base model."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch.testing import assert_close

from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.online import build_online, num_letters
from tests.trainers.ppo import build_ppo
from tests.trees.test_equality import random_trees
from tests.values.test_adapters import logprobs_of, saved_base, saved_reward  # noqa: F401
from tuneline.models.layouts import prepare_for_trees
from tuneline.rewards import RewardAdapter
from tuneline.trees import lay_out

LORA = dict(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
STEPS = dict(learning_rate=1e-3, max_steps=4, num_ppo_epochs=2, num_mini_batches=1)


def with_form(folder, form, **given):
    arguments = {"head": {}, "model": {"value_model": tiny_reward_model(seed=3)}, "adapter": {"peft_config": lora()}}
    return build_ppo(folder, value_function=form, **{**STEPS, **arguments[form], **given})


def lora(**changes):
    return LoraConfig(**{**LORA, **changes})


def parameters(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("form", ["head", "model", "adapter"])
def test_ppo_trains_policy_and_value_function(form, checkpointing, tmp_path):
    trainer = with_form(tmp_path, form, gradient_checkpointing=checkpointing)
    before = parameters(trainer.model)
    trainer.train()
    changed = {
        name for name, parameter in parameters(trainer.model).items() if not torch.equal(parameter, before[name])
    }
    assert changed == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    of_value = {"head": "value_head.", "model": "value_model.", "adapter": ".value."}[form]
    assert any(of_value in name for name in changed)
    first, second, *_ = [line for line in trainer.state.log_history if "loss/value_avg" in line]
    assert first["val/ratio"] == pytest.approx(1, abs=1e-6)
    assert first["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert second["loss/value_avg"] < first["loss/value_avg"]  # on the same completions


def test_checkpointed_layers_train_alike(tmp_path):
    runs = [with_form(tmp_path, "adapter", gradient_checkpointing=is_on) for is_on in (False, True)]
    for trainer in runs:
        trainer.train()
    plain, checkpointed = (parameters(trainer.model) for trainer in runs)
    for name in plain:
        assert_close(checkpointed[name], plain[name], atol=1e-6, rtol=1e-5)


def multi_adapter(folder, saved_base, saved_reward, **given):  # noqa: F811
    policy = type(tiny_causal_lm()).from_pretrained(saved_base, dtype=torch.float32)
    reward = RewardAdapter(saved_reward)
    return build_ppo(folder, model=policy, reward_funcs=reward, peft_config=lora(), **{**STEPS, **given})


def test_four_roles_on_one_base_model(saved_base, saved_reward, tmp_path):  # noqa: F811
    trainer = multi_adapter(tmp_path / "run", saved_base, saved_reward, gradient_checkpointing=True)
    assert trainer.module.form == "adapter"
    before = parameters(trainer.model)
    trainer.train()
    for name, parameter in parameters(trainer.model).items():
        learns = ".default." in name or ".value." in name or name.startswith("value_head.")
        assert torch.equal(parameter, before[name]) != learns, name
    optimized = {id(p) for group in trainer.optimizer.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in trainer.model.parameters() if p.requires_grad}
    logged = [line for line in trainer.state.log_history if "objective/scores" in line]
    assert len({line["objective/scores"] for line in logged}) > 1
    assert logged[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert logged[-1]["objective/kl"] != 0


def test_the_trained_policy_is_saved_alone(saved_base, saved_reward, tmp_path):  # noqa: F811
    trainer = multi_adapter(tmp_path / "run", saved_base, saved_reward)
    trainer.train()
    trainer.save_model(tmp_path / "policy")
    assert not [path for path in (tmp_path / "policy").rglob("*") if path.is_dir()]
    base = type(tiny_causal_lm()).from_pretrained(saved_base, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "policy")
    prepare_for_trees(loaded)
    trees = lay_out(random_trees())
    trainer.model.eval()
    assert_close(logprobs_of(loaded, trees), logprobs_of(trainer.model, trees), atol=1e-6, rtol=1e-6)


def test_a_run_with_four_roles_is_resumed_to_the_bit(saved_base, saved_reward, tmp_path):  # noqa: F811
    saving = dict(save_strategy="steps", save_steps=2)
    whole = multi_adapter(tmp_path / "whole", saved_base, saved_reward, **saving)
    whole.train()
    again = multi_adapter(tmp_path / "whole", saved_base, saved_reward, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected = parameters(whole.model)
    for name, parameter in parameters(again.model).items():
        assert torch.equal(parameter, expected[name]), name


def test_grpo_takes_a_reward_adapter_beside_a_function(saved_base, saved_reward, tmp_path):  # noqa: F811
    policy = type(tiny_causal_lm()).from_pretrained(saved_base, dtype=torch.float32)
    trainer = build_online(
        "grpo",
        tmp_path,
        model=policy,
        reward_funcs=[RewardAdapter(saved_reward), num_letters],
        peft_config=lora(),
        max_steps=2,
        beta=0.1,
        learning_rate=1e-3,
    )
    trainer.train()
    line = next(line for line in trainer.state.log_history if "rewards/reward/mean" in line)
    assert line["rewards/reward/std"] > 0
    trainer.save_model(tmp_path / "policy")
    assert not [path for path in (tmp_path / "policy").rglob("*") if path.is_dir()]


def test_a_reward_adapter_gives_the_scores_of_a_model_of_its_own(saved_base, saved_reward, tmp_path):  # noqa: F811
    from tests.values.test_adapters import load_reward

    shared = multi_adapter(tmp_path / "shared", saved_base, saved_reward, max_steps=1, num_ppo_epochs=1)
    policy = type(tiny_causal_lm()).from_pretrained(saved_base, dtype=torch.float32)
    apart = build_ppo(
        tmp_path / "apart",
        model=policy,
        reward_model=load_reward(saved_base, saved_reward),
        peft_config=lora(),
        value_function="adapter",
        **{**STEPS, "max_steps": 1, "num_ppo_epochs": 1},
    )
    logs = []
    for trainer in (shared, apart):
        trainer.train()
        logs.append(next(line for line in trainer.state.log_history if "objective/scores" in line))
    assert logs[0]["objective/scores"] == pytest.approx(logs[1]["objective/scores"], abs=1e-5)
