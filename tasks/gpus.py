"""GPUs as slots of a limit on Prefect's server, so that runs of several checkouts and workers share them.

A stage holds as many slots as it has processes with GPUs. The server frees the slots of a stage that was killed once
its lease has run out; a server that ends in the meantime stops no stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import get_client, get_run_logger
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from tasks.display import display
from tuneline.errors import StageError, TunelineError

LIMIT = "gpus"
LEASE_SECONDS = 60
"""How long the slots of a killed stage stay taken: the shortest that Prefect grants."""


def check_gpus(stage: str, count: int) -> None:
    """Whether the server has a limit with as many slots; says so where others hold them at this moment.

    Raises:
        StageError: there is no such limit, or it has fewer slots than the stage needs.
    """
    if count == 0:
        return
    limit = _read_limit()
    if limit is None:
        raise StageError(
            f"{stage} takes {count} of the GPUs, and Prefect's server has no limit `{LIMIT}` to share them by. Make it "
            f"once: `tuneline gpus N`, with the number of GPUs; or set {stage}.launch.gpus=0 to take none."
        )
    if limit.active and limit.limit < count:
        raise StageError(
            f"{stage} takes {count} of the GPUs, and the limit `{LIMIT}` on Prefect's server has {limit.limit} slots. "
            f"Raise it (`tuneline gpus {count}`), or lower {stage}.launch.num_processes or {stage}.launch.gpus."
        )
    if limit.active_slots + count > limit.limit:
        message = f"{stage} waits for {count} of {limit.limit} GPUs; {limit.active_slots} are taken."
        display.say(message, "yellow")
        get_run_logger().warning("%s", message)


@contextmanager
def gpu_slots(count: int) -> Iterator[None]:
    """Within it the caller holds `count` slots; it waits for them as long as others hold them."""
    if count == 0:
        yield
        return
    # A renewal that fails must not end hours of training: the server may be starting again.
    with concurrency(
        LIMIT, occupy=count, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
    ):
        yield


def set_gpus(count: int) -> str:
    """Makes the limit on the server, or changes it; returns what was done."""
    with get_client(sync_client=True) as client:
        before = _read_limit()
        if before is None:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=count))
            return f"made the limit `{LIMIT}` with {count} slots"
        client.update_global_concurrency_limit(LIMIT, GlobalConcurrencyLimitUpdate(limit=count, active=True))
        return f"the limit `{LIMIT}` has {count} slots now, before {before.limit}"


def describe_gpus() -> str:
    """How many slots there are, and how many are taken.

    Raises:
        TunelineError: there is no limit yet.
    """
    limit = _read_limit()
    if limit is None:
        raise TunelineError(f"Prefect's server has no limit `{LIMIT}` yet; make it with `tuneline gpus N`.")
    return f"{LIMIT}: {limit.active_slots} of {limit.limit} slots taken"


def _read_limit() -> Any:
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(LIMIT)
        except ObjectNotFound:
            return None
