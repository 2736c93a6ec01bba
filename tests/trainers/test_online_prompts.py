"""The order in which an online trainer asks its prompts."""

import pytest
from datasets import Dataset

from tuneline.trainers.prompts import RepeatedStream, RepeatSampler


def test_indices_and_batches_are_repeated_and_the_rest_is_left_out():
    sampler = RepeatSampler(7, mini_repeat_count=2, batch_size=3, repeat_count=2, shuffle=False)
    first, second = [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]
    assert list(sampler) == first + first + second + second
    assert len(sampler) == 24


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1), (2, 3, 1), (3, 2, 4), (1, 7, 2), (1, 8, 1)])
def test_the_length_is_that_of_the_order(shape):
    sampler = RepeatSampler(7, *shape)
    assert len(list(sampler)) == len(sampler)


def test_the_order_comes_from_seed_and_epoch():
    def order(seed, epoch):
        sampler = RepeatSampler(20, 1, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == list(range(20))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_each_batch_of_a_shuffled_order_is_repeated_as_it_is():
    asked = list(RepeatSampler(9, 2, 3, 2))
    for start in range(0, len(asked), 12):
        assert asked[start : start + 6] == asked[start + 6 : start + 12]
    assert len(set(asked)) == 9


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 2), (4, 2, 1)])
def test_a_stream_is_asked_as_the_sampler_asks(shape):
    rows = Dataset.from_list([{"prompt": str(i)} for i in range(7)])
    stream = RepeatedStream(rows.to_iterable_dataset(), *shape)
    expected = [str(i) for i in RepeatSampler(7, *shape, shuffle=False)]
    assert [row["prompt"] for row in stream] == expected


def test_rows_of_a_stream_are_copies():
    stream = iter(RepeatedStream(Dataset.from_list([{"prompt": "a"}]).to_iterable_dataset(), 2, 1, 1))
    first, second = stream
    first["prompt"] = "b"
    assert second["prompt"] == "a"
