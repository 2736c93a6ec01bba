"""A person's consent before the alias `champion` moves: the flow's run pauses, and Prefect's UI shows a form."""

import os
from datetime import timedelta

from prefect import get_run_logger
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.settings import TEMPORARY_SERVER
from stages.schema import PipelineConfig
from stages.schema_promotion import PromotionSection
from tasks.display import display
from tasks.promotion import Approval, Ask, Decision
from tasks.promotion_words import NO_SERVER_TO_ASK_ON
from tuneline.errors import ConfigError


class Consent(RunInput):
    """The form."""

    approve: bool = Field(description="Whether this version becomes champion.")
    name: str = Field(default="", description="Who says so; it is kept with the version.")
    reason: str = Field(default="", description="Why; it is kept with the version.")


def refuse_on_temporary_server(config: PipelineConfig) -> None:
    """To be called before any work.

    Raises:
        ConfigError: somebody has to agree, and there is no server whose UI could ask.
    """
    if config.promotion is not None and config.promotion.require_approval and TEMPORARY_SERVER in os.environ:
        raise ConfigError(NO_SERVER_TO_ASK_ON)


def asker(options: PromotionSection) -> Ask:
    """Asks in Prefect's UI, and waits; to be called in a flow, which stays in memory while it waits."""

    def ask(decision: Decision) -> Approval:
        hours = options.approval_timeout_hours
        display.say(f"Waiting up to {hours:g} h for approval in Prefect's UI: version {decision.version}", "yellow")
        get_run_logger().info("waits for approval of version %s of %s", decision.version, decision.model)
        try:
            form = Consent.with_initial_data(description=describe(decision), approve=False)
            said = pause_flow_run(wait_for_input=form, timeout=int(timedelta(hours=hours).total_seconds()) or 1)
        except FlowPauseTimeout:
            return Approval(False, "", f"nobody answered within {hours:g} h")
        return Approval(said.approve, said.name or "somebody in Prefect's UI", said.reason)

    return ask


def describe(decision: Decision) -> str:
    """The decision as Markdown, for the form."""
    against = f"version {decision.champion}" if decision.champion else "no champion"
    lines = [
        f"Version {decision.version} of **{decision.model}** (policy `{decision.policy}`) has passed the gate against "
        f"{against}. Is it to become champion?",
        "",
        *[f"- {reason}" for reason in decision.reasons],
    ]
    if decision.metrics:
        lines += [
            "",
            "| metric | champion | challenger | difference | interval | verdict |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {one.name} | {one.champion:.4g} | {one.challenger:.4g} | {one.difference:+.4g} "
            f"| {one.low:+.4g} to {one.high:+.4g} | {one.verdict} |"
            for one in decision.metrics
        ]
    return "\n".join(lines)
