"""A vLLM server of our own: a child process on this machine's loopback address, which ends when we do."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

import tuneline
from tuneline.errors import ConfigError, RolloutError
from tuneline.logging import get_logger
from tuneline.rollout.vllm_client import VLLMClient
from tuneline.rollout.vllm_wire import BACKEND, SERVICE, WORKER_EXTENSION

logger = get_logger(__name__)

PYTHON = "TUNELINE_VLLM_PYTHON"
_STOP_SECONDS = 20.0
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM reserves for adapters

# The child asks for a signal at its parent's end.
_TIED = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit("the process that started this server has ended")
"""
# It becomes the server. `vllm serve` looks for the version of a package named vllm, which the CPU build is not; its
# other entry point does not.
_SERVE = """
import importlib.util, os, sys
from importlib import metadata
if importlib.util.find_spec("vllm") is None:
    sys.exit(f"{sys.executable} has no vllm")
if any(d.metadata["Name"] == "vllm" for d in metadata.distributions(name="vllm")):
    serve = ["-m", "vllm.entrypoints.cli.main", "serve"]
else:
    serve = ["-W", "ignore", "-m", "vllm.entrypoints.openai.api_server", "--model"]
os.execv(sys.executable, [sys.executable, *serve, *sys.argv[1:]])
"""

_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # pausing, weights, caches
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}


def server_options(
    *,
    dtype: str = "auto",
    max_model_length: int | None = None,
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float | None = None,
    model_impl: str = "vllm",
    lora_rank: int = 0,
    enforce_eager: bool = False,
) -> list[str]:
    """What `vllm serve` needs besides the model to serve rollouts; for a server that is not started here too."""
    options = ["--worker-extension-cls", WORKER_EXTENSION, "--middleware", SERVICE]
    options += ["--weight-transfer-config", f'{{"backend": "{BACKEND}"}}']
    options += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    options += ["--dtype", dtype, "--tensor-parallel-size", str(tensor_parallel_size), "--model-impl", model_impl]
    if max_model_length is not None:
        options += ["--max-model-len", str(max_model_length)]
    if gpu_memory_utilization is not None:
        options += ["--gpu-memory-utilization", str(gpu_memory_utilization)]
    if lora_rank:
        options += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(reserved_rank(lora_rank))]
    if enforce_eager:
        options.append("--enforce-eager")
    return options


def reserved_rank(rank: int) -> int:
    """The least rank vLLM can reserve for an adapter of this rank."""
    if rank > _RANKS[-1]:
        raise ConfigError(f"a LoRA adapter of rank {rank}: vLLM takes at most {_RANKS[-1]}; lower lora_r.")
    return next(r for r in _RANKS if r >= rank)


class ServerProcess:
    """A running server. It gets SIGTERM at the end of the process that started it, however that ends (Linux)."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], base_url: str, log_file: Path):
        self.base_url = base_url
        self.log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ties the child to the thread that started it, so that thread stays as long as the child does.
        started = threading.Event()
        failures: list[OSError] = []
        self._keeper = threading.Thread(
            target=self._keep, args=(command, env, started, failures), name="vllm-server", daemon=True
        )
        self._keeper.start()
        started.wait()
        if failures:
            raise RolloutError(f"cannot start a vLLM server with {command[0]}: {failures[0]}") from failures[0]

    def _keep(
        self, command: Sequence[str], env: Mapping[str, str], started: threading.Event, failures: list[OSError]
    ) -> None:
        try:
            with self.log_file.open("wb") as log:
                self._process = subprocess.Popen(
                    command, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:
            failures.append(error)
            return
        finally:
            started.set()
        self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def why_down(self) -> str | None:
        """If it has ended: with what code, and how its log ends."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return None
        return f"the server has ended (exit code {code}); its log {self.log_file} ends:\n{log_end(self.log_file)}"

    def close(self) -> None:
        """End it, and all it started."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                logger.warning("vLLM server %s did not end in %g s and is killed", self.base_url, _STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # what it started and left behind
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def start_server(
    model: str | Path,
    *,
    python: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    options: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    log_file: str | Path | None = None,
    timeout: float = 240.0,
) -> ServerProcess:
    """Start `vllm serve` and wait until it is healthy.

    Args:
        model: a folder or hub name.
        python: the interpreter of an environment with vLLM; else that of TUNELINE_VLLM_PYTHON, else the running one.
        port: 0 for any that is free.
        options: of `vllm serve`; else `server_options()`.
        env: variables for the server besides this process's own. A model hub is not asked unless HF_HUB_OFFLINE=0.
        timeout: seconds until it must be healthy.

    Raises:
        RolloutError: it ended, with the end of its log; or took longer.
    """
    port = port or _free_port(host)
    base_url = f"http://{host}:{port}"
    log = Path(log_file) if log_file else Path(tempfile.mkdtemp(prefix="tuneline-vllm-")) / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [str(model), "--host", host, "--port", str(port), *(server_options() if options is None else options)]
    command = [_interpreter(python), "-c", _TIED + _SERVE, str(os.getpid()), *arguments]
    started = time.monotonic()
    logger.info("starting a vLLM server at %s, log in %s: %s", base_url, log, shlex.join(arguments))
    server = ServerProcess(command, {**_environment(), **(env or {})}, base_url, log)
    try:
        VLLMClient(base_url, why_down=server.why_down).wait_until_healthy(timeout)
    except RolloutError as error:
        is_running = server.why_down() is None
        server.close()
        if is_running:
            raise RolloutError(f"{error}; its log {log} ends:\n{log_end(log)}") from error
        raise
    logger.info("the vLLM server at %s is ready after %.1f s", base_url, time.monotonic() - started)
    return server


def become_server(model: str | Path, options: Sequence[str], *, python: str | Path | None = None) -> NoReturn:
    """Replace this process with `vllm serve`, which then has its terminal and its signals.

    Args:
        options: of `vllm serve`, host and port among them.
        python: as of `start_server`.

    Raises:
        RolloutError: there is no such interpreter.
    """
    interpreter = _interpreter(python)
    sys.stdout.flush()
    try:
        os.execve(interpreter, [interpreter, "-c", _SERVE, str(model), *options], _environment())
    except OSError as error:
        raise RolloutError(f"cannot start a vLLM server with {interpreter}: {error}") from error


def _interpreter(python: str | Path | None) -> str:
    return str(python or os.environ.get(PYTHON) or sys.executable)


def _environment() -> dict[str, str]:
    """This process's variables, as a server needs them."""
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_THIS_PROCESS}
    paths = os.pathsep.join(filter(None, [_import_path(), inherited.get("PYTHONPATH")]))
    return {**inherited, **_QUIET, "PYTHONPATH": paths}


# What a launcher tells this process about its place among the ranks is not the server's.
_OF_THIS_PROCESS = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT", "TORCHELASTIC_RUN_ID",
}  # fmt: skip


def log_end(path: Path, num_lines: int = 20) -> str:
    """The lines of a log that name an error, of which the first is often the cause, and its last ones."""
    if not path.exists():
        return "(no log)"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1_000_000))
        lines = file.read().decode(errors="replace").splitlines()
    errors = dict.fromkeys(match[0] for line in lines[:-num_lines] if (match := _AN_ERROR.search(line)))
    return "\n".join(line[:500] for line in [*list(errors)[:5], *lines[-num_lines:]])


_AN_ERROR = re.compile(r"\w+(Error|Exception): .+")


@cache
def _import_path() -> str:
    """A folder that holds this package and nothing else: that of site-packages would hide the server's own packages.
    Its name is new, so that nobody else can have put another package there."""
    folder = tempfile.mkdtemp(prefix="tuneline-import-")
    Path(folder, "tuneline").symlink_to(Path(tuneline.__file__).resolve().parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
