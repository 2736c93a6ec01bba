"""A run that fails, dies unheard, or makes a model that is refused is told of at an address."""

import json
import os
import signal
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.deployments.conftest import Line, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
CHANGE_DPO = ["dpo.launch.timeout_hours=2"]


class Receiver:
    """What was posted to it, as JSON."""

    def __init__(self) -> None:
        heard: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                heard.append({**json.loads(body), "type": self.headers["Content-Type"]})
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.heard = heard
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    def of(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.heard if one["event"] == event]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def test_failed_refused_and_dead_runs_are_told_of(line: Line, receiver: Receiver):
    line.deploy()
    shown = line.type(f"tuneline notify {receiver.url} --dead-after 90")
    assert shown.count("watches: ") == 3
    assert line.type(f"tuneline notify {receiver.url} --dead-after 90") == shown  # renewed, not doubled
    assert "would count as dead" in line.type(f"tuneline notify {receiver.url} --dead-after 60", check=False)
    line.checkout.order("dpo", "2 ok hang")
    with line.worker():
        failed = line.run("full-line", overrides=CHANGE_DPO)
        line.wait(failed, "Failed")
        wait_until(lambda: bool(receiver.heard), 60)
        (told,) = receiver.of("prefect.flow-run.Failed")
        assert (told["flow_run"], told["state"], told["type"]) == (str(failed.id), "Failed", "application/json")
        assert "Stage dpo cannot run as it is" in told["message"]
        assert "the toy breaks here" in told["text"]

        with_decision(line.path, {"version": "8", "champion": "7", "alias_moved": False, "reasons": ["kl 0.9 > 0.5"]})
        refused = line.run("full-line", overrides=CHANGE_DPO, promote=False)
        line.wait(refused, "Completed")
        wait_until(lambda: bool(receiver.of("tuneline.regressed")), 60, lambda: str(receiver.heard))
        (told,) = receiver.of("tuneline.regressed")
        assert (told["flow_run"], told["name"], told["champion"]) == (str(refused.id), "toy", "7")
        assert told["reasons"] == ["kl 0.9 > 0.5"]
        assert "stays at version 7: kl 0.9 > 0.5" in told["text"]

        with_decision(line.path, {"version": "9", "champion": "7", "alias_moved": True, "reasons": []})
        line.run("full-line", overrides=["dpo.launch.timeout_hours=3"], promote=False)
        wait_until(lambda: line.checkout.tries("dpo") == 3, 120, lambda: line.log)
        dead = line.runs()[-1]
    # The worker is gone and so nobody hears of the run's death.
    for process in line.checkout.processes():
        os.kill(process.pid, signal.SIGKILL)
    killed = time.monotonic()
    assert line.state(dead) == "Running"
    line.wait(dead, "Crashed", 240)
    print(f"a run that died unheard is Crashed after {time.monotonic() - killed:.0f} s")
    wait_until(lambda: bool(receiver.of("prefect.flow-run.Crashed")), 60, lambda: str(receiver.heard))
    assert "No sign of life for 90 s" in receiver.of("prefect.flow-run.Crashed")[0]["message"]
    assert len(receiver.heard) == 3
    assert line.type("tuneline notify --off").count("removed: ") == 4  # and the webhook
    assert "nothing to remove" in line.type("tuneline notify --off")


def with_decision(root: Path, decision: dict[str, Any]) -> None:
    """Promotion's decision, written an hour ahead of a run that itself decides nothing."""
    path = root / "reports" / "promotion.json"
    path.write_text(json.dumps(decision))
    soon = time.time() + 3600
    os.utime(path, (soon, soon))
