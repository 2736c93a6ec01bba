"""A stage that several checkouts need at the same time is computed by one of them; the others restore it.

They share DVC's cache. Before a checkout asks DVC for a stage, it takes a lock that is named by the stage's identity:
the bytes that it reads and its settings. Who comes second finds the result in the run cache. Any death frees the lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.identity import stage_identity
from stages.supervise import stage_lock
from tuneline.errors import StageError

SHARED_STAGES = "TUNELINE_SHARED_STAGES"
"""The folder of the locks; checkouts that name the same one share what they compute."""


@contextmanager
def computed_once(stage: str, root: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Within it no other checkout computes the same stage; without TUNELINE_SHARED_STAGES it is nothing at all.

    Args:
        stage: The stage that DVC is going to be asked for.
        root: The checkout.
        on_wait: Told, in words, that another checkout computes it.
    """
    folder = os.environ.get(SHARED_STAGES)
    if not folder:
        yield
        return
    try:
        identity = stage_identity(stage, root)
    except StageError:  # it reads what is not there; DVC tells that better
        yield
        return

    def tell(line: str) -> None:
        on_wait("another variant computes it; waiting for its result")

    with stage_lock(Path(folder) / f"{stage}-{identity.key}", tell):
        yield
