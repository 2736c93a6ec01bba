"""Which stages of the line a run is about."""

from collections.abc import Sequence

from stages.schema import STAGES
from tasks.graph import StagePlan
from tuneline.errors import ConfigError, TunelineError


def chosen_plans(plans: Sequence[StagePlan], only: Sequence[str] | None) -> list[StagePlan]:
    """The plans of these stages, in the order of the line; of all of them for None.

    Raises:
        ConfigError: a name is none of the line's stages.
        TunelineError: a stage is made from what another one left that is out of date, and is not among them.
    """
    if only is None:
        return list(plans)
    if unknown := [name for name in only if name not in STAGES]:
        raise ConfigError(f"only={', '.join(unknown)}: the line has no such stage; there are {', '.join(STAGES)}.")
    chosen = [plan for plan in plans if plan.name in only]
    for plan in chosen:
        if missing := [name for name in plan.follows if name not in only]:
            raise TunelineError(
                f"{plan.name} is made from what {', '.join(missing)} left, which is out of date. Run the whole line "
                f"(`tuneline run CONFIG`), or first `tuneline stage {missing[0]}`."
            )
    return chosen
