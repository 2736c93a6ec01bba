"""The alias `champion` moves back: to the champion before, or to a version that is named."""

from __future__ import annotations

from pathlib import Path

from stages.loading import load_params
from tasks.graph import PARAMS_FILE
from tasks.promotion import registered_name
from tasks.registry import Move, Registry, RegistryError, go_down, standing, who


def roll_back(root: Path, to: str = "", why: str = "", model: str = "", by: str = "") -> Move:
    """Move the alias, and note who did it, when and why in the model's history.

    Args:
        to: a version; empty takes the champion before the present one.
        model: a registered model; empty takes that of the line in this checkout.
        by: empty takes the user on this machine.

    Raises:
        RegistryError: there is no champion to go back from or to, no such version, or MLflow cannot be reached.
    """
    registry = Registry(root)
    name = model or registered_name(load_params(root / PARAMS_FILE))
    champion = registry.champion(name)
    if not to:
        if champion is None:
            raise RegistryError(
                f"{name} has no champion to go back from; `tuneline rollback --to VERSION` makes a version champion."
            )
        before = standing(registry.history(name))
        if champion.version in before:  # what is noted above it never stood: the alias could not be moved then
            go_down(before, champion.version)
            before.pop()
        if not before:
            raise RegistryError(
                f"Version {champion.version} is the first champion of {name}, so there is none to go back to; "
                "`--to VERSION` names one."
            )
        to = before[-1]
    version = registry.version(name, to)
    if champion is not None and champion.version == version.version:
        raise RegistryError(f"Version {to} is the champion of {name} already; nothing was changed.")
    move = registry.move_champion(version, champion, by=by or who(), why=why, kind="rollback")
    if champion is not None:
        registry.tag(champion, {"rollback.at": move.at, "rollback.by": move.by, "rollback.why": why, "rollback.to": to})
    return move
