"""A Prefect server for one run, when the user has none: on loopback, on a free port, and gone when the run is.

Prefect would start one itself, but only once its client is imported (here both load side by side), and would leave it
behind when the run is killed. `python -m flows.server SOCKET` is the server's own process.
"""

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

from flows.settings import LOOPBACK, TEMPORARY_SERVER
from tuneline.errors import TunelineError

_START_TIMEOUT_SECONDS = 120


class TemporaryServer:
    """The server's process, and the address that it answers on."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.api_url = f"http://{LOOPBACK}:{port}/api"
        self._process = process
        self._log = log
        self._at_exit = partial(_stop, process)
        atexit.register(self._at_exit)

    def wait_until_ready(self) -> None:
        """Returns when the server answers.

        Raises:
            TunelineError: it ended, or took longer than two minutes.
        """
        limit = time.monotonic() + _START_TIMEOUT_SECONDS
        while time.monotonic() < limit:
            if self._process.poll() is not None:
                raise TunelineError(
                    f"Prefect's temporary server ended while starting (exit code {self._process.returncode}):\n"
                    f"{_end_of(self._log)}\nThe whole log is {self._log}; `PREFECT_API_URL` names a server of your own."
                )
            with contextlib.suppress(urllib.error.URLError, TimeoutError, ConnectionError):
                urllib.request.urlopen(f"{self.api_url}/health", timeout=5).close()
                return
            time.sleep(0.05)
        raise TunelineError(f"Prefect's temporary server did not answer in {_START_TIMEOUT_SECONDS} s: {self._log}")

    def stop(self) -> None:
        """Ends it now; what runs on in this process has no server then."""
        atexit.unregister(self._at_exit)
        _stop(self._process)


def start_temporary_server(log: Path) -> TemporaryServer:
    """Starts a server, names it in PREFECT_API_URL and returns at once.

    It is stopped when this process exits. To be called before `import prefect`: Prefect sends its last logs and
    events on exit, and what was registered first is called last.
    """
    from stages.supervise import owner_env

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, 0))  # bound here and handed over, so that nobody can take the port in between
        port = listener.getsockname()[1]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.server", str(listener.fileno())],
                env={**os.environ, **owner_env()},
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must reach the run first, which still has to tell the server
            )
    server = TemporaryServer(process, port, log)
    os.environ |= {"PREFECT_API_URL": server.api_url, TEMPORARY_SERVER: "1"}
    return server


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_of(log: Path, num_lines: int = 5) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])


def serve(listener_fd: int) -> None:
    """Runs the server in this process until it is told to stop or its owner is gone."""
    from stages.supervise import die_with_parent, watch_owner

    die_with_parent()
    watch_owner()
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    uvicorn.run(app, fd=listener_fd, log_level="error", lifespan="on")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
