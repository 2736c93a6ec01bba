"""Which stages of the line a run is about, and what it would do with each."""

from collections.abc import Sequence
from pathlib import Path

from stages.loading import write_params
from stages.schema import STAGES, PipelineConfig
from tasks.graph import PARAMS_FILE, StagePlan, plan_stages
from tasks.start import fetch_start
from tuneline.errors import ConfigError, TunelineError

RUN_LOCK = Path(".work") / "run.lock"
"""One run at a time is under way in a checkout."""


def plans_of(root: Path, config: PipelineConfig, *, is_free: bool) -> list[StagePlan]:
    """What a run with these settings would do now.

    Args:
        is_free: The caller holds `RUN_LOCK`. While another run does, its params.yaml and models/start stay as they are.
    """
    if not (root / PARAMS_FILE).exists():  # dvc.yaml cannot be read without it
        write_params(config, root / PARAMS_FILE)
    if is_free:
        fetch_start(root, config)
    return plan_stages(root, config.model_dump(mode="json"))


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
