"""The command that goes on with a run, as its user would type it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def command_to_go_on(config: str | None, overrides: Sequence[str], only: Sequence[str] | None) -> str:
    """Such as `tuneline run configs/quickstart.yaml --set seed=3`; empty where no command repeats the run."""
    if config is None:
        return shlex.join(["tuneline", "stage", *only]) if only else ""
    changes = [part for change in overrides for part in ("--set", change)]
    return shlex.join(["tuneline", "run", config, *changes])
