"""Many calls at once: order, time limits, what hangs."""

import asyncio
import threading
import time
from functools import partial

import pytest

from tests.meeting import Meeting
from tuneline.environments.calling import ConcurrentCalls, is_async


@pytest.fixture
def calls():
    with ConcurrentCalls() as made:
        yield made


def sleep_and_give(seconds, value):
    time.sleep(seconds)
    return value


async def sleep_and_give_async(seconds, value):
    await asyncio.sleep(seconds)
    return value


def test_outcomes_stand_in_the_order_of_the_calls_whatever_order_they_ended_in(calls):
    mixed = [
        partial(sleep_and_give, 0.12, "a"),
        partial(sleep_and_give_async, 0.06, "b"),
        partial(sleep_and_give, 0.0, "c"),
        partial(sleep_and_give_async, 0.0, "d"),
    ]
    assert [outcome.value for outcome in calls.run(mixed, timeout=5)] == ["a", "b", "c", "d"]


def test_plain_and_async_calls_run_at_the_same_time(calls):
    meeting = Meeting(40)
    outcomes = calls.run([meeting.wait] * 20 + [meeting.wait_async] * 20, timeout=60)
    assert [outcome.error for outcome in outcomes] == [None] * 40


def test_a_call_that_hangs_times_out_and_the_others_do_not(calls):
    release = threading.Event()
    outcomes = calls.run([release.wait, partial(sleep_and_give_async, 60, 0), lambda: 7], timeout=0.2)
    release.set()
    assert [outcome.timed_out for outcome in outcomes] == [True, True, False]
    assert outcomes[2].value == 7


def test_an_async_function_that_blocks_its_event_loop_costs_its_batch_and_no_more(calls):
    async def blocks():
        time.sleep(2.5)

    outcomes = calls.run([blocks, partial(sleep_and_give_async, 0.1, 1)], timeout=0.05)
    assert outcomes[0].timed_out
    assert calls.run([partial(sleep_and_give_async, 0.0, 3)], timeout=1)[0].value == 3


def test_what_a_call_raises_is_its_outcome(calls):
    def exits():
        raise SystemExit(3)

    async def exits_async():
        raise KeyboardInterrupt

    def stops():
        raise StopIteration

    outcomes = calls.run([lambda: 1 / 0, exits, exits_async, stops, lambda: "alive"], timeout=5)
    assert isinstance(outcomes[0].error, ZeroDivisionError)
    assert [str(outcome.error)[:10] for outcome in outcomes[1:4]] == ["SystemExit", "KeyboardIn", "StopIterat"]
    assert outcomes[4].value == "alive"


def test_what_a_plain_function_returns_is_awaited_where_it_can_be(calls):
    assert calls.run([lambda: sleep_and_give_async(0, 5)], timeout=1)[0].value == 5


def test_one_event_loop_serves_all_batches(calls):
    async def loop():
        return asyncio.get_running_loop()

    first, second = calls.run([loop], timeout=1)[0].value, calls.run([loop], timeout=1)[0].value
    assert first is second


def test_async_callables_are_told_apart():
    class Tool:
        async def __call__(self):
            pass

        async def method(self):
            pass

    assert all(map(is_async, (sleep_and_give_async, partial(sleep_and_give_async, 1), Tool(), Tool().method)))
    assert not any(map(is_async, (sleep_and_give, partial(sleep_and_give, 1), Tool, print)))
