"""One reward function on one batch, in the background, within its time.

A call that raises, hangs or gives something else than one number a sample is tried again sample by sample, so that
only the samples at fault are lost. Python cannot kill a thread. One that ran out of time is abandoned: an exception is
raised in it, which ends a loop of Python code but not a call that is blocked in C, such as `time.sleep`; such a thread
stays until its call returns, or the process ends, which it does not hold up. What must be killable belongs in a
process, as the built-in verifiers have it.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import math
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tuneline.errors import ConfigError, RewardError
from tuneline.rewards.batch import Batch, Record, Signature, Unavailable

# Of the time that is left, what one sample may take when samples are tried one by one: the others want theirs.
_SHARE_OF_A_SAMPLE = 0.25
_GRACE = 1.0  # seconds in which an event loop should notice that time is up


class _LoopBlocked(TimeoutError):
    """An asynchronous function did not let the others run."""


@runtime_checkable
class BoundsItsTime(Protocol):
    """A reward function that ends its own work in time; it is waited for that long, whatever the time-out of a call."""

    def longest(self, num_samples: int) -> float:
        """Seconds that a batch may take at the most."""
        ...


@runtime_checkable
class OwnsModel(Protocol):
    """A reward function that computes with a model of its own, which can lie on a device."""

    def move_to(self, device: torch.device) -> None:
        """Bring the model to a device, unless it lies on one already."""


@runtime_checkable
class SharesPolicy(Protocol):
    """A reward function that computes with the policy in training, and so is called by the trainer's own thread, when
    the policy does nothing else. No time-out ends it."""

    def attach(self, policy: Any) -> None:
        """Be told of the policy, before training."""
        ...


class _Abandoned(BaseException):
    """Raised in a thread whose time is up."""


@dataclass
class Outcome:
    """Rewards of one function, NaN for None and for what was lost, with the reason of each loss by sample."""

    values: list[float]
    lost: dict[int, str]
    record: Record
    seconds: float = 0.0


@dataclass
class Function:
    """A reward function with its name in the logs.

    `loop` is the event loop that asynchronous functions share, so that they may keep a client open between calls. Once
    one of them blocked it, each that was hit goes on with a loop of its own.
    """

    name: str
    call: Callable[..., Any]
    loop: EventLoop
    signature: Signature = field(init=False)

    def __post_init__(self) -> None:
        self.signature = Signature(self.call)

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.call) or inspect.iscoroutinefunction(type(self.call).__call__)

    def close(self) -> None:
        self.loop.close()

    def reward(self, batch: Batch, timeout: float) -> Outcome:
        """Rewards of a batch, after at most two times `timeout` seconds: the call, and the calls sample by sample.

        Raises:
            ConfigError: from the function.
        """
        started = time.monotonic()
        if isinstance(self.call, BoundsItsTime):
            timeout = max(timeout, self.call.longest(len(batch)))
        record = Record(len(batch))
        try:
            values, lost = _numbers(self._ask(batch, record, timeout), len(batch))
            outcome = Outcome(values, lost, record)
        except ConfigError:
            raise
        except Exception as error:
            reason = _reason(error)
            if isinstance(error, _LoopBlocked):
                self.loop = EventLoop()
            if len(batch) == 1 or isinstance(error, Unavailable):
                outcome = Outcome([math.nan] * len(batch), dict.fromkeys(range(len(batch)), reason), Record(len(batch)))
            else:
                outcome = self._one_by_one(
                    batch, timeout, at_once=self.is_async and not isinstance(error, _LoopBlocked)
                )
        outcome.seconds = time.monotonic() - started
        return outcome

    def _ask(self, batch: Batch, record: Record, timeout: float) -> Any:
        arguments = self.signature.select(batch.arguments(record))
        deadline = time.monotonic() + timeout
        if self.is_async or isinstance(self.call, SharesPolicy):
            answer = self.call(**arguments)
        else:
            answer = _in_a_thread(self.call, arguments, timeout)
        if inspect.isawaitable(answer):
            answer = self.loop.run(answer, deadline - time.monotonic())
        return answer

    def _one_by_one(self, batch: Batch, timeout: float, at_once: bool) -> Outcome:
        """Asynchronous functions at once, others one after the other: few are written for several threads."""
        outcome = Outcome([math.nan] * len(batch), {}, Record(len(batch)))
        singles = [(batch.only(i), Record(1)) for i in range(len(batch))]
        answers: Sequence[Any]
        if at_once:
            calls = [self.call(**self.signature.select(one.arguments(record))) for one, record in singles]
            try:
                answers = self.loop.run(_gathered(calls, timeout), timeout + _GRACE)
            except TimeoutError as error:
                answers = [error] * len(singles)
        else:
            answers = self._in_turn(singles, timeout)
        for i, (answer, (_, record)) in enumerate(zip(answers, singles, strict=True)):
            try:
                if isinstance(answer, BaseException):
                    raise answer
                values, lost = _numbers(answer, 1)
            except Exception as error:
                outcome.lost[i] = _reason(error)
                continue
            outcome.values[i] = values[0]
            if lost:
                outcome.lost[i] = lost[0]
            outcome.record.take(i, record)
        return outcome

    def _in_turn(self, singles: Sequence[tuple[Batch, Record]], timeout: float) -> list[Any]:
        deadline = time.monotonic() + timeout
        answers: list[Any] = []
        for one, record in singles:
            remaining = deadline - time.monotonic()
            if remaining < 0.01 * timeout:
                answers.append(TimeoutError(f"no time was left of {timeout:g} s: other samples took it"))
                continue
            try:
                answers.append(self._ask(one, record, remaining * _SHARE_OF_A_SAMPLE))
            except Exception as error:
                answers.append(error)
        return answers


async def _gathered(calls: Sequence[Awaitable[Any]], timeout: float) -> list[Any]:
    return await asyncio.gather(*(_within(call, timeout) for call in calls), return_exceptions=True)


async def _within(call: Awaitable[Any], timeout: float) -> Any:
    try:
        async with asyncio.timeout(timeout) as limit:
            return await call
    except TimeoutError as error:
        raise (TimeoutError(f"took longer than {timeout:.3g} s") if limit.expired() else error) from None


def _in_a_thread(call: Callable[..., Any], arguments: dict[str, Any], timeout: float) -> Any:
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def work() -> None:
        try:
            try:
                answers.put((True, call(**arguments)))
            except Exception as error:
                answers.put((False, error))
            except SystemExit as error:
                answers.put((False, RuntimeError(f"it called for the end of the process, {error!r}")))
        except _Abandoned:
            pass

    thread = threading.Thread(target=work, daemon=True, name="reward")
    thread.start()
    try:
        has_answered, answer = answers.get(timeout=max(timeout, 0.0))
    except queue.Empty:
        _interrupt(thread)
        raise TimeoutError(f"took longer than {timeout:.3g} s") from None
    if has_answered:
        return answer
    raise answer


def _interrupt(thread: threading.Thread) -> None:
    if thread.ident is not None and thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Abandoned))


class EventLoop:
    """An event loop in a thread of its own, started when first needed; one that was blocked is replaced."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, awaitable: Awaitable[Any], timeout: float) -> Any:
        """The result of an awaitable.

        Raises:
            TimeoutError: it took longer, or another one blocked the loop.
        """
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run_loop, args=(self._loop,), daemon=True, name="rewards")
                self._thread.start()
            loop = self._loop
        future = asyncio.run_coroutine_threadsafe(_within(awaitable, timeout), loop)
        try:
            return future.result(max(timeout, 0.0) + _GRACE)
        except TimeoutError:
            if future.done():
                raise
            self._abandon(loop)
            raise _LoopBlocked(
                f"took longer than {timeout:.3g} s, and something blocked the event loop (a call in an asynchronous "
                "function that should be awaited)"
            ) from None

    def _abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if self._loop is loop and self._thread is not None:
                _interrupt(self._thread)
                self._loop = self._thread = None

    def close(self) -> None:
        with self._lock:
            if self._loop is not None and self._thread is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(_GRACE)
            self._loop = self._thread = None


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
    except _Abandoned:
        pass
    finally:
        loop.close()


def _numbers(answer: Any, num_samples: int) -> tuple[list[float], dict[int, str]]:
    """The rewards, and why some are none.

    Raises:
        RewardError: it is no list with one entry a sample.
    """
    if isinstance(answer, Tensor):
        answer = answer.detach().cpu().tolist()
    elif not isinstance(answer, list | tuple) and hasattr(answer, "tolist"):  # an array
        answer = answer.tolist()
    if not isinstance(answer, list | tuple):
        raise RewardError(f"returned {answer!r:.80}, which is no list of {num_samples} rewards")
    if len(answer) != num_samples:
        raise RewardError(f"returned {len(answer)} rewards for {num_samples} completions")
    values, lost = [], {}
    for i, value in enumerate(answer):
        if isinstance(value, Tensor) or (not isinstance(value, Real) and hasattr(value, "item")):
            value = value.item()
        number = math.nan if value is None else float(value) if isinstance(value, Real) else math.inf
        if math.isinf(number):
            lost[i] = f"returned {value!r:.80}, which is no finite number and not None"
        values.append(math.nan if math.isinf(number) else number)
    return values, lost


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, RewardError | TimeoutError) and text:
        return text
    return f"raised {type(error).__name__}{': ' + text if text else ''}"
