"""PPO: the first update, what is learned from, what is held back, what is logged."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.testing import assert_close
from transformers import TrainerCallback

from tests.data import tiny_tokenizers
from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.build import weights, with_plain_descent
from tests.trainers.online import EOS, MAX_LENGTH, by_position, questions
from tests.trainers.ppo import build_ppo, config
from tests.trainers.rows import character_tokenizer
from tests.values.build import values_of
from tuneline import PPOTrainer
from tuneline.errors import ConfigError, ModelError
from tuneline.logprobs import token_logprobs
from tuneline.models.layouts import prepare_for_trees
from tuneline.rollout.scripted import ScriptedEngine
from tuneline.scores import sequence_scores
from tuneline.trainers.ppo_model import policy_parameters
from tuneline.trees import Branch, Tree, lay_out

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
ENDS, CUT = [5, 6, EOS], [7, 8] * MAX_LENGTH


def lines(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


def forms():
    return [
        pytest.param({}, id="head"),
        pytest.param({"reward_model": tiny_reward_model()}, id="model"),
        pytest.param({"peft_config": LORA}, id="adapter"),
    ]


@pytest.mark.parametrize("given", forms())
def test_before_the_first_update_the_ratio_is_one_and_the_kl_zero_to_the_bit(given, tmp_path):
    trainer = build_ppo(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4, **given)
    assert trainer.module.form == {"reward_model": "model", "peft_config": "adapter"}.get(next(iter(given), ""), "head")
    trainer.train()
    (line,) = lines(trainer)
    assert line["objective/kl"] == line["objective/non_score_reward"] == line["policy/approxkl_avg"] == 0
    assert (line["val/ratio"], line["val/ratio_var"], line["policy/clipfrac_avg"]) == (1, 0, 0)
    assert line["objective/rlhf_reward"] == pytest.approx(line["objective/scores"])


@pytest.mark.parametrize("given", forms())
def test_what_is_learned_from_is_what_the_formulas_give(given, tmp_path):
    def reward(completion_ids, **columns):
        return [float(ids[0]) for ids in completion_ids]

    options = {"gamma": 0.9, "lam": 0.8, "value_lam": 0.5, "kl_coef": 0.3, "missing_eos_penalty": 2.0}
    given = {"reward_funcs": reward, **given}
    if "reward_model" in given:
        given = {"reward_funcs": reward, "value_model": tiny_reward_model()}
    trainer = build_ppo(
        tmp_path, rollout_engine=ScriptedEngine([ENDS, CUT]), whiten_advantages=False, num_generations=2,
        ref_model=tiny_causal_lm(seed=1), **options, **given,
    )  # fmt: skip
    policy, reference = tiny_causal_lm(), tiny_causal_lm(seed=1)
    for model in (policy, reference):
        prepare_for_trees(model)
    trainer.module.eval()
    trainer.train()
    (*_, waiting) = trainer.queue
    trees, known = waiting.trees, waiting.by_target
    start = {**given, "value_model": tiny_reward_model()} if "value_model" in given else given
    value = build_ppo(tmp_path, **start).module.eval()  # as it was before the first update
    with torch.no_grad():
        assert_close(known["old_logprobs"], token_logprobs(policy, trees).logprobs, atol=1e-5, rtol=1e-5)
        assert_close(known["old_values"], values_of(value, trees), atol=1e-5, rtol=1e-5)
        kl = token_logprobs(policy, trees).logprobs - token_logprobs(reference, trees).logprobs
    seen = 0
    for number in range(trees.num_sequences):
        own = trees.sequence_ids == number
        ids = trees.target_ids[own].tolist()
        seen += len(ids)
        rewards = (-0.3 * kl[own]).tolist()
        rewards[-1] += ids[0] - (0.0 if ids[-1] == EOS else 2.0)
        values = [*known["old_values"][own].tolist(), 0.0]
        advantage = critics = 0.0
        for i in reversed(range(len(ids))):
            surprise = rewards[i] + 0.9 * values[i + 1] - values[i]
            advantage = surprise + 0.9 * 0.8 * advantage
            critics = surprise + 0.9 * 0.5 * critics
            assert known["advantages"][own][i].item() == pytest.approx(advantage, abs=1e-4)
            assert known["returns"][own][i].item() == pytest.approx(critics + values[i], abs=1e-4)
    assert seen == 8 * len(ENDS) // 2 + 8 * MAX_LENGTH // 2


def test_advantages_are_whitened_over_the_tokens_of_the_generation(tmp_path):
    trainer = build_ppo(tmp_path, num_mini_batches=2, per_device_train_batch_size=4)
    trainer.train()
    last_pass = [one.by_target["advantages"] for one in list(trainer.queue)[-2:]]
    advantages = torch.cat(last_pass)
    assert_close(advantages.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(advantages.std(), torch.tensor(1.0))


def test_the_loss_is_the_sum_of_its_parts(tmp_path):
    options = {"vf_coef": 0.3, "entropy_coef": 0.05, "max_steps": 3, "learning_rate": 1e-2}
    trainer = build_ppo(tmp_path, **options)
    trainer.train()
    for line in lines(trainer):
        parts = line["loss/policy_avg"] + 0.3 * line["loss/value_avg"] - 0.05 * line["policy/entropy_avg"]
        assert line["loss"] == pytest.approx(parts, abs=2e-4)  # the loss is logged with four digits
    assert lines(trainer)[-1]["val/ratio_var"] > 0


def test_the_score_stands_where_the_environment_leaves_off_and_values_pass_over_its_tokens(tmp_path):
    # the policy writes 5 6, the environment 9 9 9, the policy 7 and the end
    def roll_out(prompts, trainer):
        tokenizer = character_tokenizer()
        return {
            "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": [[5, 6, 9, 9, 9, 7, EOS] for _ in prompts],
            "logprobs": None,
            "env_mask": [[1, 1, 0, 0, 0, 1, 1] for _ in prompts],
        }

    trainer = build_ppo(
        tmp_path, rollout_func=roll_out, value_model=tiny_reward_model(), kl_coef=0.0, whiten_advantages=False, lam=0.5
    )
    trainer.train()
    waiting = trainer.queue[-1]
    value = build_ppo(tmp_path, value_model=tiny_reward_model()).module.eval()
    for number in range(waiting.trees.num_sequences):
        own = waiting.trees.sequence_ids == number
        assert waiting.trees.target_ids[own].tolist() == [5, 6, 7, EOS]
        values = [*waiting.by_target["old_values"][own].tolist(), 0.0]
        advantage = 0.0
        for i in reversed(range(4)):
            reward = 3.0 if i == 3 else 0.0  # the letters below 7 of `num_letters`: 5, 6 and the end
            advantage = reward + values[i + 1] - values[i] + 0.5 * advantage
            assert waiting.by_target["advantages"][own][i].item() == pytest.approx(advantage, abs=1e-4)
    with torch.no_grad():
        assert_close(values_of(value, waiting.trees), waiting.by_target["old_values"], atol=1e-5, rtol=1e-5)


def test_a_completion_without_a_score_teaches_nothing_and_is_counted(tmp_path):
    def reward(completion_ids, answer, **columns):
        return [None if number == 3 else 1.0 for number in answer]

    trainer = build_ppo(tmp_path, reward_funcs=reward, use_score_scaling=True, rollout_engine=ScriptedEngine([ENDS]))
    trainer.train()
    assert trainer.credit.moments.count == 7
    waiting = trainer.queue[-1]
    assert waiting.trees.num_sequences == 7
    assert int(waiting.num_targets) == 7 * len(ENDS)
    assert all(torch.isfinite(value).all() for value in waiting.by_target.values())


def test_micro_batches_of_nothing_but_lost_scores_move_nothing(tmp_path):
    def reward(completion_ids, **columns):
        return [None] * len(completion_ids)

    trainer = build_ppo(tmp_path, reward_funcs=reward, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    before = weights(with_plain_descent(trainer))
    trainer.train()
    assert all(torch.equal(before[name], end) for name, end in weights(trainer).items())
    assert "objective/scores" not in lines(trainer)[0]


def test_scores_are_scaled_by_all_that_were_seen_and_clipped(tmp_path):
    def reward(completion_ids, **columns):
        return [float(ids[0]) for ids in completion_ids]

    options = {"use_score_scaling": True, "use_score_norm": True, "score_clip": 1.0, "kl_coef": 0.0, "lam": 1.0}
    engine = ScriptedEngine([[5, EOS], [6, EOS], [13, EOS]])  # scores 5, 6, 13 in turn, of 8: 5 6 13 5 6 13 5 6
    trainer = build_ppo(
        tmp_path, reward_funcs=reward, rollout_engine=engine, whiten_advantages=False, **options,
    )  # fmt: skip
    trainer.train()
    scores = torch.tensor([trainer.queue[-1].trees.target_ids[i].item() for i in range(0, 16, 2)]).double()
    expected = ((scores - scores.mean()) / scores.std()).clamp(-1, 1).float()
    assert_close(trainer.queue[-1].by_target["returns"].reshape(8, 2), expected[:, None].expand(8, 2))
    (line,) = lines(trainer)
    assert line["objective/scores"] == pytest.approx(scores.mean().item())  # as they came


def test_the_coefficient_adapts_to_the_kl(tmp_path):
    options = {"adap_kl_ctrl": True, "target": 1e-9, "horizon": 100, "num_ppo_epochs": 1, "learning_rate": 1e-2}
    trainer = build_ppo(tmp_path, max_steps=3, **options)
    trainer.train()
    first, second, third = (line["kl_coef"] for line in lines(trainer))
    assert first == pytest.approx(0.05)
    assert second == pytest.approx(first * (1 - 0.2 * 8 / 100))  # a KL of 0 at first
    assert third == pytest.approx(second * (1 + 0.2 * 8 / 100))


def test_a_policy_that_goes_too_far_is_asked_anew(tmp_path):
    options = {"num_mini_batches": 2, "per_device_train_batch_size": 4, "num_ppo_epochs": 3, "max_steps": 6}
    episodes = {}
    for target_kl in (1e-9, None):
        trainer = build_ppo(tmp_path, target_kl=target_kl, learning_rate=1e-2, **options)
        trainer.train()
        episodes[target_kl] = [line["episode"] for line in lines(trainer)]
        if target_kl:
            stops = [line["policy/stopped_early"] for line in lines(trainer)]
    assert episodes[None] == [8] * 6
    assert episodes[1e-9] == [8, 8, 16, 16, 24, 24]  # each generation ends with its second step
    assert stops == [0, 1] * 3


@pytest.mark.parametrize("given", forms())
def test_while_the_critic_warms_up_the_policy_stays(given, tmp_path):
    options = {"critic_warmup_steps": 2, "weight_decay": 0.1, "learning_rate": 1e-2, "max_grad_norm": 1.0}
    trainer = build_ppo(tmp_path, max_steps=3, **options, **given)
    policy = {id(parameter) for parameter in policy_parameters(trainer.module)}
    names = {name for name, parameter in trainer.module.named_parameters() if id(parameter) in policy}
    moved: list[set[str]] = []
    last = weights(trainer)

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            now = weights(trainer)
            moved.append({name for name in now if not torch.equal(now[name], last[name])})
            last.update(now)

    trainer.add_callback(Watch())
    trainer.train()
    assert all(moved)
    assert not (moved[0] | moved[1]) & names
    assert moved[2] & names


def test_gradients_of_both_come_through_one_backbone(tmp_path):
    trainer = build_ppo(tmp_path, max_steps=2)
    before = weights(with_plain_descent(trainer, 0.1))
    trainer.train()
    after = weights(trainer)
    assert not torch.equal(before["value_head.weight"], after["value_head.weight"])
    assert not torch.equal(before["policy.model.embed_tokens.weight"], after["policy.model.embed_tokens.weight"])


def test_mini_batches_are_cut_another_way_in_each_pass(tmp_path):
    trainer = build_ppo(
        tmp_path, num_mini_batches=4, per_device_train_batch_size=2, num_ppo_epochs=3, rollout_engine=by_position(8)
    )
    trainer.train()
    passes = [[one.trees.input_ids.tolist() for one in list(trainer.queue)[-4 * i :][:4]] for i in (1, 2)]
    assert passes[0] != passes[1]
    tokens = [sorted(token for batch in one for token in batch[0]) for one in passes]
    assert tokens[0] == tokens[1]


def test_an_evaluation_measures_and_adapts_nothing(tmp_path):
    options = {"use_score_scaling": True, "adap_kl_ctrl": True, "eval_dataset": questions(3)}
    trainer = build_ppo(tmp_path, per_device_eval_batch_size=4, **options)
    trainer.train()
    before = trainer.algorithm_state()
    metrics = trainer.evaluate()
    assert trainer.algorithm_state() == before
    names = ("objective/kl", "objective/scores", "policy/entropy_avg", "loss/value_avg", "reward", "loss")
    assert all(math.isfinite(metrics[f"eval_{name}"]) for name in names)


def test_the_metrics_have_the_names_of_trl(tmp_path):
    trainer = build_ppo(tmp_path)
    trainer.train()
    (line,) = lines(trainer)
    assert {
        "eps", "episode", "lr", "objective/kl", "objective/entropy", "objective/non_score_reward",
        "objective/rlhf_reward", "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg",
        "policy/entropy_avg", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg", "val/ratio", "val/ratio_var",
        "val/num_eos_tokens", "kl_coef",
    } <= line.keys()  # fmt: skip
    assert line["lr"] == line["learning_rate"]
    assert line["episode"] == 8


def test_a_reward_model_scores_prompt_and_completion_and_the_value_function_starts_from_it(tmp_path):
    reward_model, tokenizer = tiny_reward_model(vocab_size=128), tiny_tokenizers.character_tokenizer()
    answer = [*tokenizer("yes")["input_ids"], tokenizer.eos_token_id]
    trainer = build_ppo(
        tmp_path, model=tiny_causal_lm(vocab_size=128), processing_class=tokenizer, reward_model=reward_model,
        rollout_engine=ScriptedEngine([answer]), learning_rate=1e-2,
    )  # fmt: skip
    start = trainer.module.value_model
    assert start is not reward_model
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), reward_model.parameters(), strict=True))
    trainer.train()
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in questions()]
    with torch.no_grad():
        expected = sequence_scores(reward_model, lay_out([Tree(ids, [Branch(answer)]) for ids in prompts])).mean()
    assert lines(trainer)[0]["objective/scores"] == pytest.approx(expected.item(), abs=1e-5)
    assert not torch.equal(start.score.weight, reward_model.score.weight)


def test_a_reward_model_does_not_learn_though_it_is_passed_as_value_model_too(tmp_path):
    reward_model = tiny_reward_model()
    trainer = build_ppo(tmp_path, reward_model=reward_model, value_model=reward_model, learning_rate=1e-2)
    assert trainer.module.form == "model"
    trainer.train()
    before = tiny_reward_model()
    assert all(torch.equal(a, b) for a, b in zip(reward_model.parameters(), before.parameters(), strict=True))


def test_a_reward_model_that_can_be_no_value_model_leaves_a_head(tmp_path):
    two_labels = tiny_reward_model()
    two_labels.config.num_labels = 2
    assert build_ppo(tmp_path, reward_model=two_labels).module.form == "head"
    with pytest.raises(ModelError, match="num_labels=2"):
        build_ppo(tmp_path, reward_model=two_labels, value_function="model")
    with pytest.raises(ConfigError, match="no model to begin with"):
        build_ppo(tmp_path, value_function="model")


def test_prompts_that_come_as_tokens_are_taken_as_they_are(tmp_path):
    tokenizer = character_tokenizer()
    texts = [row["prompt"] for row in questions()]
    rows = Dataset.from_list([
        {"input_ids": [0, 0, *tokenizer(text)["input_ids"]], "attention_mask": [0, 0] + [1] * len(text), "answer": i}
        for i, text in enumerate(texts)
    ])  # fmt: skip
    seen = []

    def reward(prompts, answer, completion_ids, **columns):
        seen.extend(zip(prompts, answer, strict=True))
        return [1.0] * len(completion_ids)

    engine = ScriptedEngine([ENDS])
    trainer = build_ppo(tmp_path, train_dataset=rows, reward_funcs=reward, rollout_engine=engine, shuffle_dataset=False)
    trainer.train()
    tokens = [tokenizer(text)["input_ids"] for text in texts]
    assert [list(request.prompt_ids) for request in engine.requests] == tokens
    assert seen == [(tokenizer.decode(ids), i) for i, ids in enumerate(tokens)]


@pytest.mark.parametrize("given", [{"stop_token_id": 7}, {"stop_token": "eos"}], ids=str)
def test_the_token_that_ends_a_completion_can_be_chosen(given, tmp_path):
    trainer = build_ppo(tmp_path, **given)
    assert trainer.sampling.stop_token_ids == (given.get("stop_token_id", EOS),)


def test_samples_are_shown_as_often_as_asked(tmp_path, capsys):
    trainer = build_ppo(tmp_path, num_sample_generations=2, max_steps=8, num_ppo_epochs=2)
    trainer.train()
    assert len(list((tmp_path / "completions").glob("*.parquet"))) == 2


def test_what_is_missing_is_said_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="nothing to reward with"):
        build_ppo(tmp_path, reward_funcs=None)
    policy = tiny_causal_lm()
    with pytest.raises(ConfigError, match="one object"):
        build_ppo(tmp_path, model=policy, ref_model=policy)
    with pytest.raises(ConfigError, match="args is a Qwen2ForCausalLM"):
        PPOTrainer(policy)
    with pytest.raises(ConfigError, match="sft_model_path"):
        PPOTrainer(config(tmp_path))
    with pytest.raises(ConfigError, match="reward_model='accuracy_reward'"):
        build_ppo(tmp_path, reward_model="accuracy_reward")
