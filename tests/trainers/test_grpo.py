"""GRPO: dynamic sampling, tools, environments, a user's rollouts, options; and that it learns."""

import asyncio

import pytest
import torch
from datasets import Dataset

from tests.environments import scripts
from tests.models import tiny_causal_lm
from tests.trainers.build import with_plain_descent
from tests.trainers.online import EOS, build_online, num_letters, questions, written
from tuneline import GRPOConfig
from tuneline.errors import ConfigError, DataError, RolloutError
from tuneline.rollout.scripted import ScriptedEngine


def last_line(trainer):
    return [line for line in trainer.state.log_history if "loss" in line][-1]


# Dynamic sampling


def test_groups_without_spread_are_replaced_and_counted(tmp_path):
    def reward(completion_ids, answer, log_extra, **columns):
        log_extra("asked", answer)
        asked = zip(completion_ids, answer, strict=True)
        return [len(ids) + 0.1 * i if number > 3 else 1.0 for i, (ids, number) in enumerate(asked)]

    tables = []
    trainer = build_online(
        "grpo",
        tmp_path,
        reward_funcs=reward,
        rollout_engine=ScriptedEngine(written),
        dynamic_sampling=True,
        max_dynamic_sampling_rounds=20,
        per_device_train_batch_size=32,
    )
    trainer.add_rollout_listener(lambda step, table: tables.append(table))
    trainer.train()
    line = last_line(trainer)
    assert line["dynamic_sampling/num_replaced"] >= 4  # of eight prompts four teach nothing
    assert line["dynamic_sampling/frac_left_without_spread"] == 0
    assert line["frac_reward_zero_std"] == 0
    (table,) = tables
    assert all(f"is {asked}" in prompt for prompt, asked in zip(table["prompt"], table["asked"], strict=True))
    assert min(table["asked"]) > 3
    groups = [table["prompt"][i : i + 4] for i in range(0, 32, 4)]
    assert all(len(set(group)) == 1 for group in groups)


def test_replacing_keeps_to_its_rounds(tmp_path):
    engine = ScriptedEngine(written)
    trainer = build_online(
        "grpo",
        tmp_path,
        reward_funcs=lambda completion_ids, **columns: [1.0] * len(completion_ids),
        rollout_engine=engine,
        dynamic_sampling=True,
        max_dynamic_sampling_rounds=2,
    )
    trainer.train()
    assert len(engine.calls) == 3
    assert last_line(trainer)["dynamic_sampling/num_replaced"] == 4
    assert last_line(trainer)["dynamic_sampling/frac_left_without_spread"] == 1
    assert last_line(trainer)["loss"] == 0


def test_a_stream_cannot_be_sampled_dynamically(tmp_path):
    trainer = build_online(
        "grpo",
        tmp_path,
        train_dataset=questions().to_iterable_dataset(),
        dynamic_sampling=True,
        reward_funcs=num_letters,
    )
    with pytest.raises(ConfigError, match="dynamic_sampling=True needs a dataset that can be read at any row"):
        trainer.train()


def test_a_stream_is_learned_from_as_its_rows_in_order(tmp_path):
    outcomes = []
    for rows in (questions(), questions().to_iterable_dataset()):
        trainer = build_online("grpo", tmp_path, train_dataset=rows, shuffle_dataset=False, max_steps=3)
        trainer.train()
        outcomes.append(
            [
                {k: v for k, v in line.items() if k not in ("epoch", "step_time")}
                for line in trainer.state.log_history[:-1]
            ]
        )
    assert outcomes[0] == outcomes[1]


# Tools and environments


def with_turns(folder, rows, **given):
    tokenizer = scripts.tokenizer()
    model = tiny_causal_lm(vocab_size=len(tokenizer), max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id)
    return build_online(
        "grpo", folder, model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(rows),
        max_completion_length=300, vllm_importance_sampling_correction=False, shuffle_dataset=False, **given,
    )  # fmt: skip


async def add(a: int, b: int) -> int:
    """Adds.

    Args:
        a: one
        b: the other
    """
    await asyncio.sleep(0)
    return a + b


def test_what_tools_say_is_no_target_and_reaches_the_rewards_as_messages(tmp_path):
    seen = []

    def reward(prompts, completions, completion_ids, **columns):
        seen.extend(completions)
        return [float(i) for i in range(len(completions))]

    engine = scripts.turns(scripts.call("add", a=1, b=2), "It is 3.")
    trainer = with_turns(
        tmp_path, [{"prompt": scripts.user("1 and 2?")}] * 2, reward_funcs=reward, rollout_engine=engine, tools=[add],
        num_iterations=2,
    )  # fmt: skip
    trainer.train()
    assert [message["role"] for message in seen[0]] == ["assistant", "tool", "assistant"]
    assert seen[0][1]["content"] == "3"
    waiting = trainer.queue[0]
    targets = scripts.text_of(waiting.trees.target_ids[waiting.trees.sequence_ids == 0])
    assert targets == scripts.call("add", a=1, b=2) + "<|end|>It is 3.<|end|>"
    line = last_line(trainer)
    assert line["tools/call_frequency"] == 1
    assert line["tools/failure_frequency"] == 0
    assert line["completions/mean_length"] == len(scripts.ids_of(targets))


class Counter:
    """Counts."""

    def reset(self, start=0, **row):
        self.value = start
        return f"Count from {start}."

    def increment(self, by: int) -> int:
        """Counts up.

        Args:
            by: how far
        """
        self.value += by
        return self.value

    def get_reward(self):
        return float(self.value)


def test_environments_reach_the_rewards_and_reward_themselves(tmp_path):
    seen = []

    def reward(completions, environments, **columns):
        seen.extend(environment.value for environment in environments)
        return [0.5] * len(completions)

    engine = scripts.turns(scripts.call("increment", by=2), "Done.")
    tables = []
    rows = [{"start": 5}, {"start": 7}]  # the environment brings the prompt
    trainer = with_turns(
        tmp_path, rows, reward_funcs=reward, rollout_engine=engine, environment_factory=Counter, beta=0.1
    )
    trainer.add_rollout_listener(lambda step, table: tables.append(table))
    trainer.train()
    assert seen == [7] * 4 + [9] * 4
    assert tables[0]["reward"] == [7.5] * 4 + [9.5] * 4
    first, second = (scripts.text_of(request.prompt_ids) for request in engine.calls[0][0])
    assert "Count from 5." in first
    assert "Count from 7." in second


def test_environments_alone_need_the_length_of_the_run(tmp_path):
    engine = scripts.turns(scripts.call("increment", by=2), "Done.")
    options = {"rollout_engine": engine, "environment_factory": Counter, "train_dataset": None, "reward_funcs": None}
    tokenizer = scripts.tokenizer()
    model = tiny_causal_lm(vocab_size=len(tokenizer), max_position_embeddings=4096)
    common = {"model": model, "processing_class": tokenizer, "max_completion_length": 200}
    with pytest.raises(ConfigError, match="length of the run is unknown; set max_steps"):
        build_online("grpo", tmp_path, **common, **options, max_steps=-1)
    trainer = build_online("grpo", tmp_path, **common, **options, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    assert last_line(trainer)["reward"] == 2


# A user's rollouts


def rollouts(prompts, trainer):
    ids = trainer.processing_class(prompts)["input_ids"]
    return {
        "prompt_ids": ids,
        "completion_ids": [[5, 6, 7, 8 + i % 3, EOS] for i in range(len(prompts))],
        "logprobs": [[-1.0] * 5] * len(prompts),
        "env_mask": [[1, 0, 0, 1, 1]] * len(prompts),
        "found": [i % 4 for i in range(len(prompts))],
        "source": "a game",
    }


def test_rollouts_of_a_function_with_columns_of_its_own(tmp_path):
    seen = []

    def reward(completion_ids, found, source, answer, **columns):
        seen.extend(source)
        return [float(value) for value in found]

    trainer = build_online("grpo", tmp_path, rollout_func=rollouts, reward_funcs=reward, num_iterations=2)
    trainer.train()
    assert seen == ["a game"] * 8
    assert last_line(trainer)["completions/mean_length"] == 3  # what the policy wrote
    assert last_line(trainer)["reward"] == 1.5
    assert {tuple(ids.tolist()) for ids in trainer.queue[0].trees.target_ids.reshape(-1, 3)} == {
        (5, 8 + i, EOS) for i in range(3)
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logprobs": None}, "and no 'logprobs'; it has to give a list"),
        ({"completion_ids": [[5]]}, r"1 'completion_ids' for 8 prompts; give one each"),
        ({"env_mask": [[1]] * 8}, r"completion 0 with 5 ids, 5 logprobs and 1 env_mask entries"),
    ],
)
def test_rollouts_that_do_not_fit_are_refused(change, message, tmp_path):
    def broken(prompts, trainer):
        given = {**rollouts(prompts, trainer), **change}
        return {name: value for name, value in given.items() if value is not None}

    trainer = build_online("grpo", tmp_path, rollout_func=broken)
    with pytest.raises(RolloutError, match=message):
        trainer.train()


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type='ppo' is unknown; use one of"),
        ({"loss_type": "cispo", "epsilon_high": 0.2}, r"epsilon_high=0.2 is the largest ratio itself .*use 5.0"),
        ({"loss_type": "sapo", "delta": 2.0}, "delta=2.0 is not read with loss_type='sapo'"),
        ({"delta": 0.5}, "delta=0.5 must be at least 1"),
        ({"scale_rewards": "std"}, "scale_rewards='std' is unknown; use one of group, batch, none"),
        ({"kl_estimator": "k4"}, "kl_estimator='k4' is unknown"),
        ({"importance_sampling_level": "sequence_sum"}, "importance_sampling_level='sequence_sum' is unknown"),
        ({"top_entropy_quantile": 1.5}, r"top_entropy_quantile=1.5 is a share; use a value in \[0, 1\]"),
        ({"vllm_importance_sampling_mode": "clip"}, "clip"),
        ({"entropy_coef_min": 0.5, "entropy_coef_max": 0.1}, "entropy_coef_min=0.5 is above entropy_coef_max=0.1"),
        ({"entropy_coef_delta": 0.0}, "entropy_coef_delta=0.0 must be above 0"),
        (
            {"scale_rewards": "batch", "multi_objective_aggregation": "normalize_then_sum"},
            "scale_rewards='batch' has no effect",
        ),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize(("given", "settled"), [(True, "group"), (False, "none"), ("batch", "batch")])
def test_scale_of_rewards_may_be_told_as_a_bool(given, settled, tmp_path):
    assert GRPOConfig(output_dir=str(tmp_path), use_cpu=True, scale_rewards=given).scale_rewards == settled


def test_tools_with_prompts_of_plain_text_are_refused(tmp_path):
    trainer = with_turns(
        tmp_path,
        [{"prompt": "1 and 2?"}] * 2,
        reward_funcs=num_letters,
        rollout_engine=ScriptedEngine(written),
        tools=[add],
    )
    with pytest.raises(DataError, match="With tools or environments a prompt is a list of messages"):
        trainer.train()


# Learning


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("grpo", {}),
        pytest.param("grpo", {"loss_type": "cispo", "num_iterations": 2}, marks=pytest.mark.slow),
        ("rloo", {"beta": 0.01}),
    ],
    ids=str,
)
def test_the_policy_learns_to_write_what_is_rewarded(method, options, tmp_path):
    trainer = build_online(
        method,
        tmp_path,
        reward_funcs=lambda completion_ids, **columns: [sum(t == 5 for t in ids) / 8 for ids in completion_ids],
        max_steps=25,
        num_generations=8,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        **options,
    )
    trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert rewards[0] < 0.1
    assert rewards[-1] > 0.6


def test_one_update_is_reinforce_with_a_baseline(tmp_path):
    """With ratios of 1 the gradient is that of advantage times log-probability, each over all targets."""
    from tuneline.logprobs import token_logprobs
    from tuneline.models.layouts import prepare_for_trees

    trainer = build_online(
        "grpo",
        tmp_path,
        rollout_engine=ScriptedEngine(written),
        num_iterations=2,
        vllm_importance_sampling_correction=False,
    )
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with_plain_descent(trainer, 1.0).train()
    waiting = trainer.queue[0]
    policy = tiny_causal_lm()
    prepare_for_trees(policy)
    logprobs = token_logprobs(policy, waiting.trees).logprobs
    (-(waiting.advantages[waiting.trees.sequence_ids] * logprobs).sum() / waiting.num_targets).backward()
    for name, parameter in policy.named_parameters():
        moved = start[name] - dict(trainer.model.named_parameters())[name].detach()
        torch.testing.assert_close(moved, parameter.grad, atol=1e-5, rtol=1e-4)
