"""The flow `align`: prepare, sft, then reward, dpo and grpo, then ppo, then evaluate. DVC skips what is up to date.

Which stage waits for which is DVC's to say: grpo waits for reward too where the reward model is one of its rewards, and
ppo does not where it is none.
"""

import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import State
from pydantic import Field

from flows.approval import asker, refuse_on_temporary_server
from flows.chosen import RUN_LOCK, chosen_plans
from flows.settings import TEMPORARY_SERVER, apply_stage_settings
from stages.launch import gpus_of_machine, num_gpus
from stages.loading import check_settings, load_config, load_params, write_params
from stages.schema import PipelineConfig, TrainingSection
from stages.supervise import stage_lock, start_again, stop_all
from tasks.again import command_to_go_on
from tasks.dead_runs import noted
from tasks.display import display
from tasks.graph import PARAMS_FILE, StagePlan, plan_stages
from tasks.history import add_to_history
from tasks.promotion import try_to_promote
from tasks.publishing import try_to_write_report
from tasks.regression import tell_of_regression
from tasks.stage import StageFailure, run_stage
from tasks.start import fetch_start
from tasks.storage import push_after_run
from tasks.summary import RunSummary, StageSummary, save_last_run
from tasks.tracking import ParentRun
from tuneline.errors import ConfigError

MAX_DELAY_SECONDS = 600


def _name_of_run() -> str:
    config, settings = (flow_run.parameters.get(name) for name in ("config", "settings"))
    if isinstance(settings, dict):
        settings = settings.get("name")
    elif isinstance(settings, PipelineConfig):
        settings = settings.name
    return f"{Path(config).stem if config else settings or 'align'} {datetime.now():%Y-%m-%d %H:%M:%S}"


@flow(name="align", flow_run_name=_name_of_run, persist_result=False)
def align(
    config: str | None = None,
    settings: PipelineConfig | None = None,
    overrides: list[str] | None = None,
    only: list[str] | None = None,
    force: bool = False,
    parallel: bool = False,
    retries: Annotated[int, Field(ge=0)] = 2,
    retry_delay: Annotated[float, Field(ge=0)] = 10.0,
    push: bool = False,
    promote: bool = True,
    root: str = ".",
) -> None:
    """Brings every stage of the line up to date.

    Args:
        config: A pipeline's YAML; null takes the settings of the last run, from params.yaml.
        settings: A pipeline's settings, instead of a file that holds them.
        overrides: Changes to it, such as `dpo.training.beta=0.2`.
        only: Stages to run; null takes all.
        force: Run them even if they are up to date.
        parallel: Run stages that do not need each other at the same time.
        retries: Tries after a failed one; errors that the user has to mend are not tried again.
        retry_delay: Seconds before the first retry; each further one waits twice as long.
        push: Send the results and the run cache to DVC's default remote at the end.
        promote: Hold the evaluated policy against the champion, where the settings have a section `promotion`.
        root: The checkout.

    Raises:
        ConfigError: the settings are wrong, or come both from a file and with the run.
        TunelineError: `only` names no stage, or one that reads what is out of date and is not named with it.
        StorageError: all was made, and could not be pushed.
    """
    folder = Path(root).absolute()
    apply_stage_settings()  # for runs that a worker starts; `tuneline run` has done so already
    chosen = _chosen_settings(config, settings, overrides or [], folder)
    refuse_on_temporary_server(chosen or load_params(folder / PARAMS_FILE))
    start_again()
    run_lock = stage_lock(folder / RUN_LOCK, _say_that_it_waits)
    with run_lock, noted(folder, str(flow_run.id)):
        if chosen is not None:
            write_params(chosen, folder / PARAMS_FILE)
        fetch_start(folder, load_params(folder / PARAMS_FILE))
        again = command_to_go_on(config, overrides or [], only)
        line = Line(folder, force=force, retries=retries, retry_delay=retry_delay, again=again)
        try:
            line.run(chosen_plans(plan_stages(folder), only), parallel)
            if only is None and promote:
                line.promote()
        except BaseException as error:
            stop_all()  # a signal reaches the main thread only; other threads' children are stopped here
            line.finish(error)
            raise
        line.finish(None)
        if push:
            push_after_run(folder)


def _chosen_settings(
    config: str | None, settings: PipelineConfig | None, overrides: list[str], root: Path
) -> PipelineConfig | None:
    """The settings of this run; None for those of the last one."""
    if settings is None:
        if config is None and overrides:
            raise ConfigError("overrides change a config or settings, and neither is given; name one.")
        return load_config(config, overrides, root=root) if config is not None else None
    if config is not None:
        raise ConfigError(f"config={config!r} and settings are both given; leave one of them out.")
    given = settings.model_dump(mode="json", exclude_unset=True, exclude={"files"})
    return check_settings(given, overrides, root, source="the settings of this run")


def _say_that_it_waits(message: str) -> None:
    display.say("Another run uses this checkout; waiting until it has ended.", "yellow")
    get_run_logger().warning("%s", message)


class Line:
    """The stages of one run: what is done, and what is left."""

    def __init__(self, root: Path, *, force: bool, retries: int, retry_delay: float, again: str = "") -> None:
        self.root = root
        self._config = load_params(root / PARAMS_FILE)
        self.settings = self._config.model_dump(mode="json")
        self.started = datetime.now(UTC)
        self._title = str(flow_run.name or "")
        self._retries = retries
        self._force = force
        self._again = again
        delays = [min(retry_delay * 2**n, MAX_DELAY_SECONDS) for n in range(retries)]
        self._task = run_stage.with_options(retries=retries, retry_delay_seconds=delays)
        self._states: dict[str, StageSummary] = {}
        self._began: dict[str, float] = {}
        self._parent = ParentRun(root, self.settings)

    def run(self, plans: list[StagePlan], parallel: bool) -> None:
        """Each stage after those it needs.

        Raises:
            StageFailure: of the first stage that failed; what needs it was not started.
        """
        self._states = {plan.name: StageSummary(plan.name, "not started", 0.0) for plan in plans}
        if self._force or any(not plan.up_to_date for plan in plans):
            self._parent.open(self._title, str(flow_run.id or ""))
        remaining = list(plans)
        while remaining:
            ready = [plan for plan in remaining if not any(other.name in plan.after for other in remaining)]
            ready = ready if parallel else ready[:1]
            remaining = [plan for plan in remaining if plan not in ready]
            self._run_together(ready)

    def _run_together(self, plans: list[StagePlan]) -> None:
        started = []
        for plan in plans:
            self._began[plan.name] = time.monotonic()
            self._states[plan.name] = StageSummary(plan.name, "stopped", 0.0)  # until it has ended
            arguments = dict(root=str(self.root), up_to_date=self._is_known_up_to_date(plan), force=self._force)
            arguments |= dict(parent_run=self._parent.id, flow_run=str(flow_run.id or ""), tries=1 + self._retries)
            arguments |= dict(gpus=self._gpus_of(plan.name))
            if len(plans) == 1:  # in this thread, which is the one that signals reach
                self._take(plan.name, self._task(plan.name, **arguments, return_state=True))
            else:
                started.append((plan.name, self._task.submit(plan.name, **arguments)))
        failures = []
        for name, future in started:
            try:
                future.wait()
                self._take(name, future.state)
            except StageFailure as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    def _gpus_of(self, name: str) -> int:
        """Slots of the limit `gpus` that a stage takes; none on a run's own server, where nobody else asks for any."""
        if TEMPORARY_SERVER in os.environ or self._config.why_off(name) is not None:
            return 0
        section = getattr(self._config, name, None)
        if isinstance(section, TrainingSection):
            return num_gpus(section.launch, self.root)
        return 0 if name == "prepare" else min(1, gpus_of_machine())

    def _take(self, name: str, state: State[Any]) -> None:
        try:
            self._states[name] = state.result()
        except StageFailure as failure:
            self._states[name] = StageSummary(name, "failed", failure.seconds, error=str(failure))
            raise

    def _is_known_up_to_date(self, plan: StagePlan) -> bool:
        """Whether DVC need not be asked again: it was up to date, and nothing that it reads was made anew since."""
        made_anew = any(self._states[name].state != "cached" for name in plan.after if name in self._states)
        return plan.up_to_date and not made_anew and not self._force

    def promote(self) -> None:
        """Holds the evaluated policy against the champion, where the config says so; see `tasks.promotion`."""
        options = load_params(self.root / PARAMS_FILE).promotion
        try_to_promote(self.root, asker(options) if options is not None and options.require_approval else None)

    def finish(self, error: BaseException | None) -> None:
        """Keeps the record, writes the report and closes MLflow's run; a run that changed nothing leaves none.

        Args:
            error: what ended the run early; None when it came to its end.
        """
        for name, state in self._states.items():
            if state.state == "stopped":
                self._states[name] = replace(state, seconds=round(time.monotonic() - self._began[name], 2))
        run = RunSummary(
            name=str(self.settings["name"]),
            config=self.settings,
            stages=tuple(self._states.values()),
            started=self.started,
            finished=datetime.now(UTC),
            flow_run=self._title,
            parent_run=self._parent.id,
            stopped=_in_words(error) if error is not None and not isinstance(error, StageFailure) else "",
            again=self._again,
        )
        if run.all_cached:
            self._parent.discard()
            return
        add_to_history(self.root, run)
        save_last_run(self.root, run)
        self._parent.close(run, try_to_write_report(self.root, run))
        tell_of_regression(self.root, run.name, str(flow_run.id or ""), self.started)


def _in_words(error: BaseException) -> str:
    """What ended a run that did not end by itself."""
    if isinstance(error, KeyboardInterrupt):
        return "a signal (Ctrl-C, or a request to end)"
    return ": ".join(filter(None, [type(error).__name__, str(error)]))
