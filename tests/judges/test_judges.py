"""Judges: the order that a pair is shown in, verdicts that fail, functions, chance and reward models."""

import pytest
import torch

from tests.models import tiny_reward_model
from tests.trainers.rows import character_tokenizer
from tuneline.errors import ConfigError, RewardError
from tuneline.judges import (
    AllTrueJudge,
    BaseBinaryJudge,
    FunctionJudge,
    JudgedRewards,
    RandomPairwiseJudge,
    RandomRankJudge,
    RewardModelJudge,
    ScriptedJudge,
)
from tuneline.rewards.models import RewardModel

PROMPTS = [f"what is {i}?" for i in range(40)]
PAIRS = [[f"it is {i}", f"no idea {i}"] for i in range(40)]
REVERSED = [pair[::-1] for pair in PAIRS]


def longer(prompt, first, second):
    return int(len(second) > len(first))


def test_a_verdict_is_about_the_completions_not_their_places():
    judge = FunctionJudge(longer)
    assert judge.judge(PROMPTS, PAIRS) == [1] * 40
    assert judge.judge(PROMPTS, REVERSED) == [0] * 40
    assert (judge.num_judged, judge.num_failures) == (80, 0)


def test_a_judge_that_prefers_a_place_is_even_and_consistent():
    judge = FunctionJudge(lambda prompt, first, second: 0)
    verdicts = judge.judge(PROMPTS, PAIRS)
    assert 10 < sum(verdicts) < 30
    assert judge.judge(PROMPTS, REVERSED) == [1 - v for v in verdicts]  # the same completion, wherever it stands
    assert judge.judge(PROMPTS, PAIRS, shuffle_order=False) == [0] * 40


def test_failures_are_counted_and_cost_their_pair_alone(caplog):
    def moody(prompt, first, second):
        if prompt == PROMPTS[3]:
            raise ValueError("no")
        return None if prompt == PROMPTS[5] else longer(prompt, first, second)

    judge = FunctionJudge(moody)
    verdicts = judge.judge(PROMPTS, PAIRS)
    assert [i for i, v in enumerate(verdicts) if v == -1] == [3, 5]
    assert verdicts.count(1) == 38
    assert judge.num_failures == 2
    assert "no verdict on 2 of 40 pairs" in caplog.text


def test_what_is_no_pair_is_told():
    with pytest.raises(RewardError, match=r"completions\[0\] is 'ab', and not a pair"):
        FunctionJudge(longer).judge(["p"], ["ab"])
    with pytest.raises(RewardError, match="2 prompts and 1 pairs"):
        FunctionJudge(longer).judge(["p", "q"], [["a", "b"]])


def test_a_script_is_said_in_turn_of_pairs_as_given():
    judge = ScriptedJudge([1, 0, -1])
    assert judge.judge(PROMPTS[:4], PAIRS[:4]) == [1, 0, -1, 1]
    assert judge.judge(PROMPTS[:2], PAIRS[:2]) == [0, -1]
    assert judge.num_failures == 2


def test_chance_is_the_same_for_the_same_texts():
    assert RandomPairwiseJudge().judge(PROMPTS, PAIRS) == RandomPairwiseJudge().judge(PROMPTS, PAIRS)
    assert 10 < sum(RandomPairwiseJudge().judge(PROMPTS, PAIRS)) < 30
    assert RandomPairwiseJudge(1).judge(PROMPTS, PAIRS) != RandomPairwiseJudge(2).judge(PROMPTS, PAIRS)
    ranks = RandomRankJudge().judge(PROMPTS, [["a", "b", "c"]] * 40)
    assert all(sorted(rank) == [0, 1, 2] for rank in ranks)
    assert len(set(map(tuple, ranks))) > 3


def test_a_reward_model_prefers_what_it_scores_higher():
    torch.manual_seed(0)
    model, tokenizer = tiny_reward_model(), character_tokenizer()
    verdicts = RewardModelJudge(model, tokenizer).judge(PROMPTS[:6], PAIRS[:6])
    score = RewardModel(model, tokenizer)
    first, second = (score(PROMPTS[:6], [pair[i] for pair in PAIRS[:6]]) for i in range(2))
    assert verdicts == [int(b > a) for a, b in zip(first, second, strict=True)]


class _Fixed(BaseBinaryJudge):
    def __init__(self, verdicts):
        self.verdicts = verdicts

    def judge(self, prompts, completions, gold_completions=None, shuffle_order=True):
        return self.verdicts


def test_all_have_to_hold_it_right():
    judge = AllTrueJudge([_Fixed([1, 1, 0, -1, -1]), _Fixed([1, 0, 1, 1, 0])])
    assert judge.judge(["p"] * 5, ["c"] * 5) == [1, 0, 0, -1, 0]
    with pytest.raises(ConfigError, match="FunctionJudge"):
        AllTrueJudge([FunctionJudge(longer)])


def test_verdicts_become_rewards_of_the_two():
    logged = {}
    reward = JudgedRewards(ScriptedJudge([0, 1, -1]))
    rewards = reward(["p", "p", "q", "q", "r", "r"], list("abcdef"), log_metric=logged.__setitem__)
    assert rewards == [1.0, 0.0, 0.0, 1.0, None, None]
    assert logged == {"judge/failures": pytest.approx(1 / 3)}
    with pytest.raises(RewardError, match="two completions of each prompt"):
        reward(["p", "q"], ["a", "b"])
    with pytest.raises(ConfigError, match="BasePairwiseJudge"):
        JudgedRewards(longer)
