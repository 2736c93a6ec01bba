"""`tuneline notify URL`: a webhook that hears of runs that failed or whose model was refused, and an end for dead runs.

All of it lies on Prefect's server: one block with the address, and automations that send events there. Called again it
renews them, so that there is one of each.
"""

import os
import time
from datetime import timedelta
from urllib.parse import urlsplit

from prefect import get_client
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from tasks.regression import REGRESSED
from tuneline.errors import TunelineError

BLOCK = "tuneline"
FLOW = "align"
FAILED, WORSE, DEAD = "tuneline: a run failed", "tuneline: a run made no better model", "tuneline: a run died"
DEFAULT_HEARTBEAT_SECONDS = 180
"""Between two signs of life of a run, where PREFECT_FLOWS_HEARTBEAT_FREQUENCY does not say otherwise."""

_PAUSE_SECONDS = 1.0
"""Between two changes of automations. Each is an event, on which Prefect 3.7's server reads its automations again under
a lock; on SQLite a change in that moment waits for the lock in the thread that alone could free it, for ever."""

# `text` is what Slack, Mattermost and others show; the rest is for programs.
_FAILED_PAYLOAD = """\
{"text": {{ ("tuneline: " ~ flow_run.name ~ " ended as " ~ flow_run.state.name ~ ": "
             ~ flow_run.state.message)|tojson }},
 "event": {{ event.event|tojson }}, "flow_run": {{ flow_run.id|string|tojson }}, "name": {{ flow_run.name|tojson }},
 "state": {{ flow_run.state.name|tojson }}, "message": {{ flow_run.state.message|tojson }}}"""
_WORSE_PAYLOAD = """\
{"text": {{ ("tuneline: " ~ event.resource.name ~ " stays at version " ~ event.payload.champion ~ ": "
             ~ event.payload.reasons|join("; "))|tojson }},
 "event": {{ event.event|tojson }}, "flow_run": {{ event.payload.flow_run|tojson }},
 "name": {{ event.resource.name|tojson }}, "version": {{ event.payload.version|tojson }},
 "champion": {{ event.payload.champion|tojson }}, "reasons": {{ event.payload.reasons|tojson }}}"""


def notify(url: str, zombies_after: float | None = None) -> list[str]:
    """Makes or renews the webhook and the automations on the server, and returns their names.

    Args:
        url: where events are posted as JSON.
        zombies_after: seconds without a sign of life after which a run counts as dead; None: three heartbeats.

    Raises:
        TunelineError: the address is none, or the time is shorter than three heartbeats.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise TunelineError(f"{url!r} is no address to post to; give one such as https://hooks.example.com/abc.")
    silence = _silence(zombies_after)
    block = Webhook(method="POST", url=url, headers={"Content-Type": "application/json"})
    block_id = block.save(BLOCK, overwrite=True)
    runs = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
    of_the_line = ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": FLOW})
    at_once = dict(posture=Posture.Reactive, threshold=1, within=timedelta(0))
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "TimedOut", "Crashed", "Cancelled")}
    waits = {f"prefect.flow-run.{state}" for state in ("Suspended", "Paused")}
    wanted = [
        AutomationCore(
            name=FAILED,
            description="Posts to the webhook block `tuneline` when a run of the line fails or is killed.",
            trigger=EventTrigger(
                expect={f"prefect.flow-run.{state}" for state in ("Failed", "TimedOut", "Crashed")},
                match=runs,
                match_related=of_the_line,
                **at_once,
            ),
            actions=[CallWebhook(block_document_id=block_id, payload=_FAILED_PAYLOAD)],
        ),
        AutomationCore(
            name=WORSE,
            description="Posts to the webhook block `tuneline` when a new model is refused the champion's place.",
            trigger=EventTrigger(expect={REGRESSED}, **at_once),
            actions=[CallWebhook(block_document_id=block_id, payload=_WORSE_PAYLOAD)],
        ),
        AutomationCore(
            name=DEAD,
            description=f"Marks a run as crashed that gave no sign of life for {silence:.0f} s.",
            trigger=EventTrigger(
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", *ends, *waits},
                match=runs,
                match_related=of_the_line,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=silence),
            ),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"No sign of life for {silence:.0f} s.")],
        ),
    ]
    _renew(wanted)
    return [automation.name for automation in wanted]


def _silence(given: float | None) -> float:
    heartbeat = int(os.environ.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY") or DEFAULT_HEARTBEAT_SECONDS)
    if given is not None and given < 3 * heartbeat:
        raise TunelineError(
            f"--dead-after {given:g}: runs give a sign of life every {heartbeat} s; at less than {3 * heartbeat} s "
            "a slow one would count as dead. PREFECT_FLOWS_HEARTBEAT_FREQUENCY (30 at least), set here and where runs "
            "start, makes it shorter."
        )
    return 3 * heartbeat if given is None else given


def _renew(wanted: list[AutomationCore]) -> None:
    """Each once and as it should be; what is so already is left alone."""
    with get_client(sync_client=True) as client:
        for automation in wanted:
            first, *others = client.read_automations_by_name(automation.name) or [None]
            if first is None:
                client.create_automation(automation)
                time.sleep(_PAUSE_SECONDS)
            elif (
                AutomationCore.model_validate(first.model_dump(include=set(AutomationCore.model_fields))) != automation
            ):
                client.update_automation(first.id, automation)
                time.sleep(_PAUSE_SECONDS)
            for other in others:
                client.delete_automation(other.id)
                time.sleep(_PAUSE_SECONDS)


def stop_notifying() -> list[str]:
    """Takes the webhook and the automations away; returns the names of those that were there."""
    removed = []
    with get_client(sync_client=True) as client:
        for name in (FAILED, WORSE, DEAD):
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)
                removed.append(name)
                time.sleep(_PAUSE_SECONDS)
        try:
            block = client.read_block_document_by_name(BLOCK, block_type_slug="webhook")
        except ObjectNotFound:
            return removed
        client.delete_block_document(block.id)
    return [*removed, f"webhook {BLOCK}"]
