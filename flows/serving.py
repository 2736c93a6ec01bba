"""`tuneline server`: Prefect's server as schedules need it, on loopback and behind a password.

Prefect's own defaults let any page that is open in a browser on the machine start runs: no password, no check of where
a request comes from. `tuneline server --env` prints what other programs have to know to use the server.
"""

import os
import secrets
import shlex
import socket
import sys
from pathlib import Path
from typing import NoReturn

from flows.settings import LOOPBACK, program
from tuneline.errors import TunelineError

_PASSED_ON = ("PREFECT_RESULTS_LOCAL_STORAGE_PATH", "PREFECT_MEMO_STORE_PATH", "PREFECT_RESULTS_DEFAULT_SERIALIZER")


def serve(root: Path, port: int) -> NoReturn:
    """Replaces this process with Prefect's server, whose state lies in PREFECT_HOME.

    Raises:
        TunelineError: the port is taken.
    """
    password = password_file()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:
            raise TunelineError(
                f"port {port} of {LOOPBACK} cannot be used ({error.strerror}); choose another: --port {port + 1}."
            ) from None
    os.environ |= server_settings(port, password.read_text())
    print(f"Prefect's UI: http://{LOOPBACK}:{port}  (log in with what {password} holds)")
    print(f'In other terminals: eval "$({program("tuneline", root)} server --env --port {port})"', flush=True)
    command = ["prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", *command])


def server_settings(port: int, password: str) -> dict[str, str]:
    """The server's environment: who may ask it, and what survives when it is started again."""
    address = f"http://{LOOPBACK}:{port}"
    return {
        "PREFECT_API_URL": f"{address}/api",
        "PREFECT_API_AUTH_STRING": password,  # its own services are clients too
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address,
        "PREFECT_SERVER_UI_API_URL": f"{address}/api",
        # In memory, the default, a server that is started again would know of slots that nobody gives back.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }


def print_client_env(port: int) -> None:
    """Shell commands that make this shell a client of the server; the password is read from its file."""
    values = {"PREFECT_HOME": os.environ["PREFECT_HOME"], "PREFECT_API_URL": f"http://{LOOPBACK}:{port}/api"}
    values |= {name: os.environ[name] for name in _PASSED_ON} | {"DO_NOT_TRACK": "1"}
    for name, value in values.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f'export PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(password_file()))})"')


def password_file() -> Path:
    """Where `user:password` of the server lies, for its owner alone; made when it is missing."""
    path = Path(os.environ["PREFECT_HOME"]).expanduser().absolute() / "auth"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        given = os.environ.get("PREFECT_SERVER_API_AUTH_STRING") or f"tuneline:{secrets.token_urlsafe(24)}"
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        with open(os.open(aside, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
            file.write(given)
        os.replace(aside, path)
    return path
