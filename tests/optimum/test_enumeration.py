"""What is known of the task without training: probabilities, the optimum, and which losses come to rest at it."""

from math import log

import pytest
import torch
from torch.testing import assert_close

from examples.analytic_optimum_fixed_points import Targets, expected_policy_loss
from examples.analytic_optimum_settings import BETA, SETTINGS
from examples.analytic_optimum_task import (
    ENDING,
    ONE_LENGTH,
    ONE_TOKEN,
    all_logps,
    objective,
    optimum,
    total_variation,
)
from examples.analytic_optimum_training import COPIES_OF_A_PAIR, pairs

EXACT = [setting for setting in SETTINGS if setting.is_exact]
# Their fixed point is the optimum as well; a run of this length does not get there.
SLOWER = [setting for setting in SETTINGS if setting.name in ("grpo-sequence", "rloo-one-length")]
ELSEWHERE = [setting for setting in SETTINGS if setting not in EXACT + SLOWER]


def reference(task):
    return all_logps(task.make_reference(), task)


def gradient(setting, logps):
    """(prompts, beginnings, vocab): of the setting's loss over all completions, at the policy of these logps."""
    targets, ref_logps = Targets(setting.task), reference(setting.task)
    logits = targets.logits(logps).requires_grad_()
    setting.expected(targets, ref_logps)(targets.logprobs(logits)).backward()
    return logits.grad


@pytest.mark.parametrize(("task", "num_completions"), [(ENDING, 1 + 2 + 4 * 3), (ONE_LENGTH, 3**3), (ONE_TOKEN, 16)])
def test_the_completions_of_a_prompt_are_all_there_are(task, num_completions):
    assert len(task.completions) == len(set(task.completions)) == num_completions
    assert_close(reference(task).exp().sum(-1), torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_reward_function_reads_the_table():
    task = ENDING
    ids = [list(task.completions[3]), list(task.completions[0])]
    assert task.reward(prompts=["ab", "bb"], completion_ids=ids) == [task.rewards[1, 3], task.rewards[3, 0]]


def test_the_optimum_of_two_completions():
    # 3/4 and 1/4, and a reward that is worth a factor of 3 to the second: 3/4 and 3/4, normalised
    ref_logps = torch.tensor([[0.75, 0.25]]).log()
    rewards = torch.tensor([[0.0, 0.5 * log(3)]])
    assert_close(optimum(ref_logps, rewards, beta=0.5).exp(), torch.tensor([[0.5, 0.5]]))
    assert_close(total_variation(ref_logps, optimum(ref_logps, rewards, beta=0.5)), torch.tensor([0.25]))


def test_the_objective_is_at_rest_at_the_optimum_and_nowhere_higher():
    task = ENDING
    ref_logps = reference(task)
    best = optimum(ref_logps, task.rewards, BETA)
    logits = best.clone().requires_grad_()
    objective(logits.log_softmax(-1), ref_logps, task.rewards, BETA).sum().backward()
    assert_close(logits.grad, torch.zeros_like(best), atol=1e-12, rtol=0)
    highest = objective(best, ref_logps, task.rewards, BETA)
    assert_close(highest, BETA * (ref_logps + task.rewards / BETA).logsumexp(-1))  # beta log Z
    for seed in range(20):
        noise = torch.randn(best.shape, generator=torch.Generator().manual_seed(seed), dtype=best.dtype)
        assert (objective((best + noise).log_softmax(-1), ref_logps, task.rewards, BETA) < highest).all()


@pytest.mark.parametrize("task", [ENDING, ONE_LENGTH, ONE_TOKEN])
def test_the_optimum_is_far_from_the_reference(task):
    ref_logps = reference(task)
    assert total_variation(ref_logps, optimum(ref_logps, task.rewards, BETA)).mean() > 0.4


def test_a_table_of_tokens_has_the_probabilities_of_its_completions():
    task = ENDING
    targets, logps = Targets(task), optimum(reference(task), task.rewards, BETA)
    assert_close(targets.logps(targets.logprobs(targets.logits(logps))), logps)


@pytest.mark.parametrize("setting", EXACT + SLOWER, ids=lambda setting: setting.name)
def test_the_loss_is_at_rest_at_the_optimum(setting):
    task = setting.task
    best = optimum(reference(task), task.rewards, BETA)
    assert gradient(setting, best).abs().max() < 1e-6 * gradient(setting, reference(task)).abs().max()


@pytest.mark.parametrize("setting", ELSEWHERE, ids=lambda setting: setting.name)
def test_the_loss_moves_on_from_the_optimum(setting):
    task = setting.task
    best = optimum(reference(task), task.rewards, BETA)
    assert gradient(setting, best).abs().max() > 0.01 * gradient(setting, reference(task)).abs().max()


@pytest.mark.parametrize("task", [ENDING, ONE_LENGTH])
def test_a_penalty_by_token_weighs_a_token_by_the_reward_that_follows_it(task):
    # at rest each token has pi(a|s) = ref(a|s) exp(Q(s, a) / beta) / Z(s) with Q the mean reward under the policy: at
    # the optimum it would be that reward less beta times the divergence still to come
    targets, ref_logps = Targets(task), reference(task)
    token_logprobs = {}  # of a prompt's tokens, by what they make the completion's beginning

    def mean_reward(prompt, beginning):
        if beginning in task.number_of:
            return task.rewards[prompt, task.number_of[beginning]]
        longer = [(*beginning, token) for token in range(task.vocab_size)]
        rewards = torch.stack([mean_reward(prompt, one) for one in longer])
        mass = torch.stack(
            [
                torch.stack(
                    [ref_logps[prompt, i] for c, i in task.number_of.items() if c[: len(one)] == one]
                ).logsumexp(0)
                for one in longer
            ]
        )
        logprobs = (mass + rewards / BETA).log_softmax(0)
        token_logprobs.update({(prompt, one): logprob for one, logprob in zip(longer, logprobs, strict=True)})
        return (logprobs.exp() * rewards).sum()

    for prompt in range(len(task.prompts)):
        mean_reward(prompt, ())
    logps = torch.stack(
        [
            torch.stack([sum(token_logprobs[prompt, c[: i + 1]] for i in range(len(c))) for c in task.completions])
            for prompt in range(len(task.prompts))
        ]
    )
    logits = targets.logits(logps).requires_grad_()
    expected_policy_loss(targets, ref_logps, kl_in_reward=False, beta=BETA)(targets.logprobs(logits)).backward()
    assert_close(logits.grad, torch.zeros_like(logits), atol=1e-7, rtol=0)
    assert total_variation(logps, optimum(ref_logps, task.rewards, BETA)).mean() > 0.05


def test_every_pair_is_chosen_as_often_as_bradley_and_terry_have_it():
    task = ENDING
    rows = pairs(task)
    assert len(rows) == 4 * 15 * 14 // 2 * COPIES_OF_A_PAIR
    one, other = task.completions[2], task.completions[7]
    wins = [
        row["chosen_ids"] == list(one)
        for row in rows
        if row["prompt_ids"] == list(task.prompt_ids[1])
        and {*map(tuple, (row["chosen_ids"], row["rejected_ids"]))} == {one, other}
    ]
    assert len(wins) == COPIES_OF_A_PAIR
    share = (task.rewards[1, 2] - task.rewards[1, 7]).sigmoid().item()
    assert abs(sum(wins) / COPIES_OF_A_PAIR - share) <= 0.5 / COPIES_OF_A_PAIR
