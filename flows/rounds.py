"""The flow `rounds`: collect from the newest policy, add the pairs to what is learned from, run the line, and again.

As in iterated online RLHF (Bai et al. 2022, arXiv:2204.05862, section 4.5) each round trains reward model and policies
anew, from where the line starts, on all preferences so far; nothing is trained further. DVC's graph has no cycle: what
a round collected is a data file of its own, which that round's prepare reads beside the preferences of the config.

A loop that was killed goes on where it was: finished rounds are in its record, labels in their store, and the stages of
the round that was cut off in DVC.
"""

import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.flow_runs import pause_flow_run, resume_flow_run
from prefect.runtime import flow_run
from pydantic import Field

from flows.align import align
from stages.loading import load_config
from stages.schema import STAGES, PipelineConfig
from tasks.collection import open_store, take_in
from tasks.display import display
from tasks.rounds import Rounds
from tuneline.collection.store import LabelStore
from tuneline.collection.web import open_server
from tuneline.errors import ConfigError

LINE = [name for name in STAGES if name != "collect"]
_POLL_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 90 * 24 * 3600
"""Prefect's pauses need an end; people are waited for that long."""


def _name_of_run() -> str:
    return f"{Path(str(flow_run.parameters.get('config'))).stem} rounds {datetime.now():%Y-%m-%d %H:%M:%S}"


@flow(name="rounds", flow_run_name=_name_of_run, persist_result=False)
def rounds(
    config: str,
    overrides: list[str] | None = None,
    num_rounds: Annotated[int, Field(ge=1)] = 3,
    labels: Literal["verifier", "reward", "judge", "person"] | None = None,
    retries: Annotated[int, Field(ge=0)] = 2,
    retry_delay: Annotated[float, Field(ge=0)] = 10.0,
    port: int | None = None,
    root: str = ".",
) -> None:
    """Collects preferences from the newest policy and learns from them, round after round.

    Args:
        config: A pipeline's YAML with a section `collect`.
        overrides: Changes to it, such as `collect.num_prompts=200`.
        num_rounds: How many rounds there are to be, with those that are done already.
        labels: Who says which is better; null: what `collect.labels` says.
        retries: Tries of a stage after a failed one.
        retry_delay: Seconds before the first retry; each further one waits twice as long.
        port: Of the page for people, on loopback; null: the one of before, or a free one.
        root: The checkout.

    Raises:
        ConfigError: the config has no section `collect`.
        StageError: a stage failed, nothing was preferred to anything, or the loop was begun with other settings.
    """
    folder = Path(root).absolute()
    changes = [*(overrides or []), *([f"collect.labels={labels}"] if labels else [])]
    checked = collecting_config(config, changes, folder)
    loop = Rounds(folder, checked)
    options: dict[str, Any] = dict(config=config, retries=retries, retry_delay=retry_delay, root=root)
    with open_store(folder, checked.name, checked.collect) as store:
        is_current = False
        for number in range(num_rounds + 1):
            if loop.is_done(number):
                display.say(f"Round {number} is done already.", "dim")
                continue
            if number and not loop.has_data(number):
                before = [*changes, *loop.overrides(number - 1)]
                if not is_current:
                    align(**options, overrides=before, only=LINE)
                _collect(number, loop, store, {**options, "overrides": before}, port)
            if number:
                loop.add_to_dvc(number)  # a loop may have been killed between the file and this
            align(**options, overrides=[*changes, *loop.overrides(number)], only=LINE)
            is_current = True
            assert checked.collect is not None
            loop.finish(number, store, checked.collect.labels)
            _show(loop, number)


def collecting_config(config: str, overrides: list[str], root: Path) -> PipelineConfig:
    """The config, which has to have a section `collect`.

    Raises:
        ConfigError: it has none, or sets what the loop sets.
    """
    checked = load_config(config, overrides, root=root)
    if checked.collect is None:
        raise ConfigError(
            f"{config} has no section `collect`, which says how much is sampled; add one, or give "
            "--set collect.num_prompts=64 (and --labels)."
        )
    if checked.prepare.collected is not None:
        raise ConfigError(
            "prepare.collected is what the rounds set; leave it out, or name that file as prepare.preferences."
        )
    return checked


def _collect(number: int, loop: Rounds, store: LabelStore, options: dict[str, Any], port: int | None) -> None:
    """Sample the round's pairs, have them labelled, and keep its data file."""
    section = loop.config.collect
    assert section is not None
    display.say(f"Round {number}: collecting from {loop.config.collected_policy}", "bold")
    align(**{**options, "overrides": [*options["overrides"], f"collect.round={number}"]}, only=["collect"])
    take_in(loop.root, store)
    if section.labels == "person":
        _wait_for_people(number, store, section.min_labels, port)
    loop.keep_data(number, store)


def _wait_for_people(number: int, store: LabelStore, min_labels: int | None, port: int | None) -> None:
    """Show the page until enough pairs of the round are answered, or somebody resumes the run in Prefect's UI."""
    num_pairs = store.progress(number).pairs
    needed = num_pairs if min_labels is None else min(min_labels, num_pairs)

    def is_enough() -> bool:
        return store.progress(number).answered >= needed

    if is_enough():
        return
    server = open_server(store, port)
    server.start()
    try:
        display.say(f"Round {number} waits for {needed} labelled pairs. Label here: {server.address}", "yellow")
        get_run_logger().info(  # without the token: logs are read by more people than may label
            "Waiting for %d labelled pairs at http://127.0.0.1:%d; `tuneline collect serve` prints the whole address. "
            "Resuming this run goes on with those that are there.",
            needed,
            server.port,
        )
        _pause_until(is_enough)
    finally:
        server.close()
    display.say(f"Round {number}: {store.progress(number).answered} of {num_pairs} pairs are answered.", "green")


def _pause_until(is_enough: Callable[[], bool]) -> None:
    """A pause that everybody sees in Prefect, and that ends by itself."""
    ended = threading.Event()
    run = UUID(str(flow_run.id))

    def resume() -> None:
        while not ended.wait(_POLL_SECONDS):
            if is_enough():
                try:
                    resume_flow_run(run)
                except Exception as error:  # not paused yet, or resumed by somebody else: seen at the next look
                    get_run_logger().debug("not resumed: %s", error)

    from contextvars import copy_context

    thread = threading.Thread(target=copy_context().run, args=(resume,), name="resume", daemon=True)
    thread.start()
    try:
        pause_flow_run(timeout=_LONGEST_WAIT_SECONDS, poll_interval=2)
    finally:
        ended.set()
        thread.join(timeout=10)


def _show(loop: Rounds, number: int) -> None:
    """The round's line on the terminal, and all of them as a table in Prefect."""
    header, rows = loop.table()
    shown = dict(zip(header, next(row for row in rows if row[0] == str(number)), strict=True))
    display.say(f"Round {number}: " + ", ".join(f"{name} {value}" for name, value in list(shown.items())[1:]), "green")
    try:
        table = [dict(zip(header, row, strict=True)) for row in rows]
        create_table_artifact(table, key="rounds", description=f"{loop.config.name}, {time.strftime('%Y-%m-%d')}")
    except Exception as error:  # a server that does not answer stops no loop
        get_run_logger().warning("The table is not shown here: %s", error)
