"""`tuneline promote`, `tuneline rollback` and `tuneline champion`."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.loading import load_params
from tasks.promotion import PARAMS_FILE, Approval, Decision, promote, registered_name
from tasks.registry import CHAMPION, Registry, who
from tasks.rollback import roll_back
from tuneline.errors import ConfigError

REFUSED = 1


def decide(root: Path, console: Console, approve: bool, reason: str) -> int:
    """Decides on the policy that was evaluated last; the exit code: 0 where it is champion afterwards, 1 where not."""
    if load_params(root / PARAMS_FILE).promotion is None:
        raise ConfigError("the line has no promotion: add a section `promotion:` to its config, and run it again.")
    approval = Approval(True, who(), reason)
    decision = promote(root, (lambda _: approval) if approve else None, again=True)
    assert decision is not None
    print_decision(console, decision)
    return 0 if decision.alias_moved or decision.version == decision.champion else REFUSED


def print_decision(console: Console, decision: Decision) -> None:
    if decision.metrics:
        table = Table("metric", "champion", "challenger", "difference", "interval", "verdict", box=None)
        for line in decision.metrics:
            numbers = (f"{line.champion:.4g}", f"{line.challenger:.4g}", f"{line.difference:+.4g}")
            table.add_row(line.name, *numbers, f"{line.low:+.4g} to {line.high:+.4g}", line.verdict)
        console.print(table)
    console.print(decision.headline(), markup=False, soft_wrap=True)


def go_back(root: Path, console: Console, to: str, why: str, model: str) -> int:
    """Moves the alias back and says what was done."""
    move = roll_back(root, to, why, model)
    was = f" (it was version {move.before})" if move.before else ""
    console.print(f"Version {move.version} is champion{was}; noted as {move.by} at {move.at}.", markup=False)
    return 0


def show_history(root: Path, console: Console, model: str) -> int:
    """Prints who was champion when, and why."""
    registry = Registry(root)
    name = model or registered_name(load_params(root / PARAMS_FILE))
    champion = registry.champion(name)
    console.print(f"{name}@{CHAMPION}: {f'version {champion.version}' if champion else 'nobody'}", markup=False)
    table = Table("when (UTC)", "what", "version", "before", "by", "why", box=None)
    table.columns[0].no_wrap = True
    for move in registry.history(name):
        table.add_row(move.at[:16].replace("T", " "), move.kind, move.version, move.before or "-", move.by, move.why)
    if table.row_count:
        console.print(table)
    return 0
