"""Credit over several processes and generations, without models; and how mini-batches are cut."""

import logging

import pytest
import torch
from torch.testing import assert_close

from tests.trainers.ppo import config
from tuneline.rollout.protocol import Rollout
from tuneline.trainers.experience import ScoredRollout
from tuneline.trainers.ppo_batches import shuffled_mini_batches
from tuneline.trainers.ppo_credit import CreditAssigner


def scored(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        ScoredRollout(
            Rollout([1, 2], [5] * n, [0.0] * n, is_finished=True),
            by_target={
                name: torch.randn(n, generator=generator) for name in ("old_logprobs", "old_values", "ref_logprobs")
            },
        )
        for n in lengths
    ]


@pytest.mark.parametrize("options", [{}, {"kl_estimator": "k3", "whiten_rewards": True, "length_adaptive_lam": 0.3}])
def test_the_whole_is_credited_as_its_parts_on_two_processes(options, tmp_path):
    args = config(tmp_path, **options)
    rollouts = scored([3, 1, 7, 4, 2])
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])
    whole = CreditAssigner(args, lambda sums: sums).assign(rollouts, scores)
    # what the processes hand in, in the order of the calls, is added up in a dry run
    handed: list[list[torch.Tensor]] = [[], []]

    def run(which, add_up):
        own = slice(0, 2) if which == 0 else slice(2, 5)
        return CreditAssigner(args, add_up).assign(rollouts[own], scores[own])

    def both(rounds):
        """Each later sum depends on the earlier ones, so they are found one after another."""
        found = []
        for number in range(rounds):
            for which in (0, 1):
                handed[which].clear()

                def add_up(sums, which=which):
                    handed[which].append(sums)
                    place = len(handed[which]) - 1
                    return found[place] if place < len(found) else sums

                run(which, add_up)
            found.append(handed[0][number] + handed[1][number])
        return found

    sums = both(4 if options else 2)
    parts = []
    for which in (0, 1):
        given = iter(sums)
        parts.append(run(which, lambda _, given=given: next(given)))
    assert_close(torch.cat([part.advantages for part in parts]), whole.advantages)
    assert_close(torch.cat([part.returns for part in parts]), whole.returns)


def test_what_does_not_count_has_no_part_in_whitening(tmp_path):
    args = config(tmp_path)
    rollouts, scores = scored([3, 5, 2]), torch.tensor([1.0, 1e6, 2.0])
    rollouts[1].counts_targets = False
    found = CreditAssigner(args, lambda sums: sums).assign(rollouts, scores)
    without = CreditAssigner(args, lambda sums: sums).assign([rollouts[0], rollouts[2]], scores[[0, 2]])
    assert_close(found.advantages[[0, 1, 2, 8, 9]], without.advantages)


def test_a_kl_that_is_clearly_negative_is_said_once(tmp_path, caplog):
    credit = CreditAssigner(config(tmp_path), lambda sums: sums)
    with caplog.at_level(logging.WARNING):
        credit.adapt(torch.tensor([-3.0, 2.0, -3.0, 1.0]))  # within what chance does
        assert not caplog.records
        credit.adapt(torch.tensor([-3.0, -2.0, -3.0, -4.0]))
        credit.adapt(torch.tensor([-3.0, -2.0, -3.0, -4.0]))
    (record,) = caplog.records
    assert "objective/kl is -3.00" in record.message
    assert "repetition_penalty" in record.message


def test_every_rollout_is_in_one_mini_batch():
    for num_rollouts, num_mini_batches, group_size in ((8, 2, 1), (8, 4, 2), (12, 3, 4), (7, 3, 1), (5, 1, 1)):
        parts = shuffled_mini_batches(num_rollouts, num_mini_batches, group_size=group_size, first=0, key=(1,))
        assert sorted(i for part in parts for i in part) == list(range(num_rollouts))
        assert max(map(len, parts)) - min(map(len, parts)) <= (num_rollouts % num_mini_batches > 0)


def test_groups_stay_together_where_there_are_enough_of_them():
    parts = shuffled_mini_batches(16, 2, group_size=4, first=0, key=(3,))
    assert all(part[i : i + 4] == list(range(part[i], part[i] + 4)) for part in parts for i in (0, 4))


def test_mini_batches_do_not_depend_on_the_number_of_processes():
    whole = shuffled_mini_batches(24, 3, group_size=1, first=0, key=(5, "a"))
    halves = [shuffled_mini_batches(12, 3, group_size=1, first=first, key=(5, "a")) for first in (0, 12)]
    assert whole == [[*one, *(12 + i for i in other)] for one, other in zip(*halves, strict=True)]
    assert whole != shuffled_mini_batches(24, 3, group_size=1, first=0, key=(6, "a"))
