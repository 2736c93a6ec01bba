"""Many calls at once, each with a time limit: coroutines in one event loop, plain functions in threads beside it.

A plain function that hangs cannot be killed. Its thread is left behind, and as it is a daemon it keeps nothing from
ending; what must be killable (code that a model wrote) runs in a child process of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from functools import partial
from typing import Any

from tuneline.logging import get_logger

logger = get_logger(__name__)

MAX_THREADS = 64  # plain functions under way at once
_GRACE = 1.0  # seconds more than the calls' own limits before the event loop itself is taken to be blocked


@dataclass(frozen=True)
class Outcome:
    """What a call gave: a value or an exception; TimeoutError where it took too long."""

    value: Any = None
    error: Exception | None = None

    @property
    def timed_out(self) -> bool:
        return isinstance(self.error, TimeoutError)


class ConcurrentCalls:
    """Runs batches of calls. Its event loop lives until `close`, so that what an async tool keeps open stays usable.

    Usable as a context manager.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, calls: Sequence[Callable[[], Any]], timeout: float | None) -> list[Outcome]:
        """The outcome of each call, in the order of the calls whatever order they ended in.

        Args:
            calls: functions of no argument, plain or async; an awaitable that a plain one returns is awaited.
            timeout: seconds a call, from its own start; None for no limit.
        """
        if not calls:
            return []
        loop = self._running_loop()
        outcomes: list[Outcome | None] = [None] * len(calls)
        batch = asyncio.run_coroutine_threadsafe(_run_all(calls, timeout, outcomes), loop)
        rounds = math.ceil(len(calls) / MAX_THREADS)
        limit = None if timeout is None else 2 * timeout * rounds + _GRACE
        try:
            batch.result(limit)
        except FutureTimeoutError:
            # An async function that never yields holds the loop itself; the loop is left to it.
            logger.warning("An async call blocked the event loop for more than %g s; a new loop takes over.", limit)
            loop.call_soon_threadsafe(loop.stop)
            self._loop = None
        unanswered = Outcome(error=TimeoutError("the event loop was blocked"))
        return [outcome if outcome is not None else unanswered for outcome in outcomes]

    def close(self) -> None:
        """End the event loop; calls that hang are left to their threads."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def __enter__(self) -> ConcurrentCalls:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=_serve, args=(loop,), name="tuneline-calls", daemon=True).start()
            self._loop = loop
        return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()


async def _run_all(calls: Sequence[Callable[[], Any]], timeout: float | None, outcomes: list[Outcome | None]) -> None:
    threads = asyncio.Semaphore(MAX_THREADS)

    async def run(i: int, call: Callable[[], Any]) -> None:
        try:
            if is_async(call):
                outcomes[i] = Outcome(await asyncio.wait_for(_contained(call()), timeout))
            else:
                async with threads:
                    outcomes[i] = Outcome(await asyncio.wait_for(_in_thread(call), timeout))
        except Exception as error:
            outcomes[i] = Outcome(error=error)

    await asyncio.gather(*(run(i, call) for i, call in enumerate(calls)))


async def _in_thread(call: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: Exception | None) -> None:
        if answer.done():  # too late: its limit had passed
            return
        if error is None:
            answer.set_result(value)
        else:
            answer.set_exception(error)

    def work() -> None:
        value: Any = None
        error: Exception | None = None
        try:
            value = call()
        except BaseException as raised:
            error = _contained_error(raised)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name="tuneline-call", daemon=True).start()
    value = await answer
    return await _contained(value) if inspect.isawaitable(value) else value


async def _contained(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except asyncio.CancelledError:
        raise
    except BaseException as raised:
        raise _contained_error(raised) from raised


def _contained_error(raised: BaseException) -> Exception:
    """What a future can carry: a tool that calls sys.exit ends its call, not the training."""
    if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
        return raised
    return RuntimeError(repr(raised))


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: async functions, bound ones, partials of them, objects with such a
    `__call__`."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
