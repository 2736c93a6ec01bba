"""GPUs are slots of a limit on the server: waited for, freed by any death, never without limit by mistake."""

import signal
import time

import pytest

from tests.deployments.conftest import Line, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
ON_TWO_GPUS = ["dpo.launch.timeout_hours=2", "dpo.launch.gpus=2"]


def taken(line: Line) -> int:
    with line.server.client() as client:
        return int(client.read_global_concurrency_limit_by_name("gpus").active_slots)


def test_a_stage_holds_its_slots_and_a_killed_one_gives_them_back(line: Line):
    line.deploy()
    line.checkout.order("dpo", "hang ok")
    with line.worker():
        run = line.run("full-line", overrides=ON_TWO_GPUS)
        line.wait(run, "Failed")
        with line.server.client() as client:
            message = client.read_flow_run(run.id).state.message
        assert "has no limit `gpus`" in message
        assert "tuneline gpus N" in message
        assert line.checkout.tries("dpo") == 0

        assert "made the limit `gpus` with 1 slots" in line.type("tuneline gpus 1")
        run = line.run("full-line", overrides=ON_TWO_GPUS)
        line.wait(run, "Failed")
        with line.server.client() as client:
            assert "the limit `gpus` on Prefect's server has 1 slots" in client.read_flow_run(run.id).state.message
        assert line.checkout.tries("dpo") == 0

        assert "has 2 slots now, before 1" in line.type("tuneline gpus 2")
        run = line.run("full-line", overrides=ON_TWO_GPUS)
        wait_until(lambda: line.checkout.tries("dpo") == 1, 120, lambda: line.log)
        assert taken(line) == 2
        assert "gpus: 2 of 2 slots taken" in line.type("tuneline gpus")

        holder = next(p for p in line.checkout.processes() if "prefect" in " ".join(p.cmdline()) and is_run(p))
        holder.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        line.wait(run, "Crashed")
        again = line.run("full-line", overrides=ON_TWO_GPUS)
        wait_until(lambda: line.checkout.tries("dpo") == 2, 200, lambda: f"{taken(line)} taken\n{line.log}")
        print(f"the slots of a killed run were taken by the next one after {time.monotonic() - killed:.0f} s")
        line.wait(again, "Completed")
    wait_until(lambda: taken(line) == 0, 30)


def is_run(process: object) -> bool:
    """Whether it is a flow run's own process, which starts DVC, and not the worker."""
    return any("dvc" in " ".join(child.cmdline()) for child in process.children())  # type: ignore[attr-defined]
