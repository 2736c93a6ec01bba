"""Servers of Prefect and MLflow as a user starts them: on loopback, each ended with all below it."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.supervise import end_tree
from tests.ports import free_port


@contextmanager
def prefect_server(home: Path, log: Path) -> Iterator[str]:
    """Yields its address."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    port = free_port()
    arguments = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with _running(arguments, env, log, f"http://127.0.0.1:{port}/api/health"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def mlflow_server(store: str, log: Path) -> Iterator[str]:
    """Yields its address; `store` is one of a database."""
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    port = free_port()
    arguments = ["mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port)]
    with _running([*arguments, "--workers", "1"], env, log, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(arguments: list[str], env: dict[str, str], log: Path, health: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        limit = time.monotonic() + 180
        while not _answers(health):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        end_tree(process.pid, 5)
        process.wait()


def _answers(health: str) -> bool:
    try:
        urllib.request.urlopen(health, timeout=5).close()
    except OSError:
        return False
    return True
