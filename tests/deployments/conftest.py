"""A real Prefect server and workers, started as docs/deployments.md says, for checkouts whose stages are toys."""

import base64
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.flows.checkouts import ROOT, Checkout
from tests.ports import free_port

# What docs/deployments.md tells to type, once the server runs.
SERVER = "tuneline server"
CLIENT = 'eval "$(tuneline server --env)"'
POOL = "prefect work-pool create tuneline --type process"
DEPLOY = "prefect deploy --all"
WORKER = "prefect worker start --pool tuneline"

QUICK = {
    # Prefect's own pauses, shortened: between two looks for work, and for a slot that is taken
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}


@dataclass
class Server:
    """Prefect's server, as `tuneline server` starts it."""

    folder: Path
    port: int
    env: dict[str, str]
    process: subprocess.Popen[str] | None = None
    seconds: float = 0.0
    """What its start took."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def shell(self, command: str, folder: Path, check: bool = True) -> str:
        """Runs a command in a shell that is a client of this server, and returns what it prints."""
        done = subprocess.run(
            ["bash", "-c", f"{self.as_typed(CLIENT)} && {self.as_typed(command)}"],
            cwd=folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def as_typed(self, command: str) -> str:
        return command.replace("tuneline server", f"tuneline server --port {self.port}")

    def start(self) -> None:
        started = time.monotonic()
        self.process = start(["bash", "-c", f"exec {self.as_typed(SERVER)}"], self.folder, self.env, "server.log")
        wait_until(self.answers, 120, lambda: (self.folder / "server.log").read_text())
        self.seconds = time.monotonic() - started

    def answers(self) -> bool:
        try:
            return self.ask("/health") == 200
        except OSError:
            return False

    def ask(self, path: str, password: str | None = None, **headers: str) -> int:
        """The status that a GET is answered with."""
        return self._status(urllib.request.Request(f"{self.url}/api{path}", headers=headers), password)

    def preflight(self, origin: str) -> int:
        """The status of what a browser asks before a page of `origin` may post."""
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return self._status(urllib.request.Request(f"{self.url}/api/flows/filter", headers=headers, method="OPTIONS"))

    @staticmethod
    def _status(request: urllib.request.Request, password: str | None = None) -> int:
        if password is not None:
            request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    @property
    def password(self) -> str:
        return (self.folder / ".prefect" / "auth").read_text()

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Prefect's own client of this server."""
        from prefect import get_client
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        with (
            temporary_settings({PREFECT_API_URL: f"{self.url}/api", PREFECT_API_AUTH_STRING: self.password}),
            get_client(sync_client=True) as client,
        ):
            yield client


@dataclass
class Line:
    """A checkout whose deployments are on a server."""

    checkout: Checkout
    server: Server
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.checkout.path

    def type(self, command: str, check: bool = True) -> str:
        """What a user types in the checkout."""
        started = time.monotonic()
        shown = self.server.shell(command, self.path, check)
        self.seconds[command] = time.monotonic() - started
        return shown

    def deploy(self, **changes: dict[str, Any]) -> None:
        """Writes prefect.yaml as the repository has it, but for this checkout's config, and deploys all of it.

        Args:
            changes: by deployment, with `_` for `-`: what replaces its fields; without, it has no schedule.
        """
        described = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        for deployment in described["deployments"]:
            mine = {"schedules": [], "parameters": {"config": "toy.yaml", "retry_delay": 0.2}}
            deployment |= mine | changes.get(deployment["name"].replace("-", "_"), {})
        (self.path / "prefect.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
        self.type(f"{POOL} --overwrite")
        self.type(DEPLOY)

    @contextmanager
    def worker(self, **env: str) -> Iterator[subprocess.Popen[str]]:
        """Within it a worker serves the pool."""
        command = f"{self.server.as_typed(CLIENT)} && exec {WORKER}"
        worker = start(
            ["bash", "-c", command], self.path, {**self.server.env, **self.checkout.env, **env}, "worker.log"
        )
        try:
            yield worker
        finally:
            end(worker)

    def run(self, deployment: str, **parameters: Any) -> Any:
        """Asks for a run at once; returns its record."""
        with self.server.client() as client:
            found = client.read_deployment_by_name(f"align/{deployment}")
            return client.create_flow_run_from_deployment(found.id, parameters=parameters)

    def state(self, run: Any) -> str:
        with self.server.client() as client:
            state = client.read_flow_run(run.id).state
            return str(state.name) if state else ""

    def runs(self) -> list[Any]:
        """All runs of this server, by the time that they are expected at."""
        with self.server.client() as client:
            return runs_of(client)

    def wait(self, run: Any, state: str, seconds: float = 120) -> None:
        """Until the run is in that state."""
        wait_until(lambda: self.state(run) == state, seconds, lambda: f"{self.state(run)}\n{self.log}")

    @property
    def log(self) -> str:
        return (self.path / "worker.log").read_text()[-6000:]


def deployments_of(client: Any) -> list[Any]:
    from prefect.client.schemas.sorting import DeploymentSort

    return list(client.read_deployments(limit=100, sort=DeploymentSort.NAME_ASC))


def runs_of(client: Any) -> list[Any]:
    from prefect.client.schemas.sorting import FlowRunSort

    return list(client.read_flow_runs(limit=200, sort=FlowRunSort.EXPECTED_START_TIME_ASC))


def start(command: list[str], folder: Path, env: dict[str, str], log: str) -> subprocess.Popen[str]:
    with (folder / log).open("a") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> None:
    """Ends a process and all below it."""
    tree = [process.pid]
    if psutil.pid_exists(process.pid):
        tree = [below.pid for below in psutil.Process(process.pid).children(recursive=True)] + tree
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in tree[:-1]:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def wait_until(holds: Callable[[], bool], seconds: float, what: Callable[[], str] = str) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, what()
        time.sleep(0.2)


def client_environment() -> dict[str, str]:
    """The user's, with this repository's programs, nothing that Prefect would read, and shorter pauses."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "TUNELINE_"))
    }
    programs = str(Path(sys.executable).parent)
    return {**kept, **QUICK, "PATH": f"{programs}{os.pathsep}{kept['PATH']}", "DVC_NO_ANALYTICS": "1"}


def add_code(folder: Path) -> None:
    """Makes a folder a checkout for `tuneline`: the pipeline's code is linked into it."""
    for name in ("flows", "tasks", "stages", "tuneline"):
        (folder / name).symlink_to(ROOT / name)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests: its start takes 10 s."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "dvc.yaml").touch()
    add_code(folder)
    made = Server(folder, free_port(), {**client_environment(), "PREFECT_HOME": str(folder / ".prefect")})
    try:
        made.start()
        yield made
    finally:
        if made.process is not None:
            end(made.process)


@pytest.fixture
def line(template: Path, server: Server, tmp_path: Path) -> Iterator[Line]:
    """A toy line, all of it up to date; nothing of earlier tests is on the server."""
    path = tmp_path / "checkout"
    shutil.copytree(template, path, symlinks=True)
    add_code(path)
    checkout = Checkout(path, server.env)
    checkout.forget_tries()
    with server.client() as client:
        for deployment in deployments_of(client):
            client.delete_deployment(deployment.id)
        for run in runs_of(client):
            client.delete_flow_run(run.id)
    yield Line(checkout, server)
    for process in checkout.processes():
        process.kill()
