"""Nash-MD: its gradient by hand, who draws what, splits, resume, judges and adapters."""

import pytest
import torch

from tests.trainers.online import EOS, questions
from tests.trainers.paired import assert_resumes_to_the_bit, build_paired, model_in, train_adapter
from tests.trainers.rows import character_tokenizer
from tests.trainers.test_online_dpo import assert_same_steps, last_log, stepped
from tuneline.errors import ConfigError
from tuneline.judges import BasePairwiseJudge, FunctionJudge, ScriptedJudge
from tuneline.rollout.protocol import Request, Sampling
from tuneline.rollout.scripted import ScriptedEngine


def by_prompt_alone():
    return ScriptedEngine(lambda prompt, seed: [5 + len(prompt) % 3, 6, *[7] * (len(prompt) % 4), EOS])


def grad_of_logps(folder, factors):
    """The gradient of sum_i factors_i log pi(y_i) by plain autograd."""
    model, tokenizer = model_in(folder), character_tokenizer()
    total = torch.zeros(())
    for row, factor in zip(questions(4), factors, strict=True):
        prompt = tokenizer(row["prompt"])["input_ids"]
        (group,) = by_prompt_alone().generate([Request(prompt, [0])], Sampling(8, stop_token_ids=(EOS,)))
        ids = group[0].ids
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        total = total + factor * logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
    total.backward()
    return {name: p.grad for name, p in model.named_parameters()}


class _ByRow(BasePairwiseJudge):
    """The first completion wins in some rows, whatever the order of the batch."""

    def __init__(self, wins):
        self.wins = wins

    def judge(self, prompts, completions, shuffle_order=True):
        return [1 - self.wins[int(prompt.split()[2].strip("?"))] for prompt in prompts]


def test_the_first_step_is_the_policy_gradient_of_the_preference(tmp_path):
    wins = [1, 0, 1, 1]
    judge = _ByRow(wins)
    trainer = build_paired("NashMD", tmp_path, rollout_engine=by_prompt_alone(), judge=judge)
    moved, log = stepped(trainer)
    # at the reference the log-ratio is 0: the loss is -mean (P - 1/2) log pi(y)
    expected = grad_of_logps(tmp_path, [-(win - 0.5) / 4 for win in wins])
    assert_same_steps({name: change / 0.1 for name, change in moved.items()}, expected)
    assert log["rewards/probabilities"] == 0.75
    assert log["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert log["mixture_coef"] == 0.5


@pytest.mark.slow
def test_the_divergence_pulls_back_once_the_policy_has_left(tmp_path):
    def run(beta):
        trainer = build_paired(
            "NashMD",
            tmp_path,
            rollout_engine=by_prompt_alone(),
            judge=ScriptedJudge([0]),
            max_steps=12,
            beta=beta,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
        )
        trainer.train()
        return last_log(trainer)["objective/kl"]

    free, held = run(1e-6), run(1.0)
    assert free > 2 * held > 0


def test_rewards_give_probabilities(tmp_path):
    def reward(completions, **columns):
        return [2.0 if i % 2 == 0 else 1.0 for i in range(len(completions))]

    trainer = build_paired("NashMD", tmp_path, reward_funcs=reward, eval_dataset=questions(2))
    trainer.train()
    assert last_log(trainer)["rewards/probabilities"] == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item())
    assert last_log(trainer)["rewards/margins"] == pytest.approx(1.0)
    assert "eval_rewards/probabilities" in trainer.evaluate()


def test_any_split_into_micro_batches_gives_the_same_step(tmp_path):
    def step(per_device, accumulation):
        trainer = build_paired(
            "NashMD",
            tmp_path,
            rollout_engine=by_prompt_alone(),
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            judge=FunctionJudge(lambda prompt, a, b: None if "1" in prompt else int(len(b) > len(a))),
        )
        return stepped(trainer)

    whole, log = step(4, 1)
    assert log["objective/lost_pairs"] == 0.25
    found, line = step(1, 4)
    assert_same_steps(found, whole)
    for name in ("loss", "objective/kl", "loss/score"):
        assert line[name] == pytest.approx(log[name], rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_a_resumed_run_ends_bit_identical(tmp_path):
    assert_resumes_to_the_bit("NashMD", tmp_path, mixture_coef=[0.2, 0.6])


def test_an_adapter_plays_against_itself_and_its_base(tmp_path):
    trainer = train_adapter("NashMD", tmp_path)
    assert last_log(trainer)["objective/kl"] != 0


def test_a_share_out_of_its_range_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"mixture_coef=1\.5"):
        build_paired("NashMD", tmp_path, mixture_coef=1.5)
