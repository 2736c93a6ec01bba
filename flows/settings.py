"""How Prefect, DVC and MLflow are set up for the pipeline: set in the environment before any of them is imported.

What the user has set stays as it is. Nothing is sent to anyone, state lies in the checkout, servers listen on loopback.
"""

import os
import sys
import tomllib
from pathlib import Path

LOOPBACK = "127.0.0.1"
TEMPORARY_SERVER = "TUNELINE_TEMPORARY_SERVER"
"""Set in a run that started a Prefect server of its own, whose address is then in PREFECT_API_URL."""


def apply_settings(root: Path) -> None:
    """Sets the environment of this process and its children; to be called before `import prefect`."""
    home = Path(os.environ.setdefault("PREFECT_HOME", str(root / ".prefect"))).expanduser().absolute()
    home.mkdir(parents=True, exist_ok=True)
    for name, value in _prefect_settings(home).items():
        os.environ.setdefault(name, value)
    apply_stage_settings()


def apply_stage_settings() -> None:
    """What DVC, MLflow and the stages read; for a process in which Prefect has been imported already."""
    for name, value in _OTHER_SETTINGS.items():
        os.environ.setdefault(name, value)
    # Stages are started as `python -m stages.run`, by a shell: it must find this interpreter.
    programs = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    os.environ.setdefault("TUNELINE_SHELL_PATH", path)
    if path.split(os.pathsep)[0] != programs:
        os.environ["PATH"] = os.pathsep.join([programs, path])


def _prefect_settings(home: Path) -> dict[str, str]:
    return {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Without these two, results go to ~/.prefect whatever PREFECT_HOME says (PrefectHQ/prefect#23046).
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_MEMO_STORE_PATH": str(home / "memo_store.toml"),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        # Its server accepts any origin by default, so that any page open in a browser could start runs on it.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{LOOPBACK}:4200",
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        # The terminal shows the pipeline's own lines; Prefect's go to its server, where its UI shows them.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_CLI_COLORS": "false",
    }


_OTHER_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}


def has_prefect_server() -> bool:
    """Whether the user named a server: by PREFECT_API_URL, or in the active profile of PREFECT_HOME."""
    if TEMPORARY_SERVER in os.environ:
        return False
    if os.environ.get("PREFECT_API_URL"):
        return True
    profiles = Path(os.environ["PREFECT_HOME"]).expanduser() / "profiles.toml"
    if not profiles.is_file():
        return False
    known = tomllib.loads(profiles.read_text())
    active = os.environ.get("PREFECT_PROFILE", known.get("active", ""))
    return "PREFECT_API_URL" in known.get("profiles", {}).get(active, {})


def prefect_ui_command(root: Path) -> str:
    """What to type to see the runs of this checkout in Prefect's UI."""
    url = os.environ.get("PREFECT_API_URL", "")
    if has_prefect_server():
        return f"open {url.removesuffix('/api')}" if url else "open the UI of the server in your Prefect profile"
    return f"{program('tuneline', root)} server"


def mlflow_ui_command(root: Path, tracking_uri: str) -> str:
    """What to type to see the runs of this checkout in MLflow's UI."""
    if not tracking_uri.startswith("sqlite:///"):
        return f"open {tracking_uri}"
    local = f"sqlite:///{_relative(tracking_uri.removeprefix('sqlite:///'), root)}"
    settings = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    return f"{settings} {program('mlflow', root)} ui --backend-store-uri {local} --host {LOOPBACK} --port 5000"


def program(name: str, root: Path) -> str:
    """How to call a program of this environment from the checkout: by name when the shell would find the same one."""
    here = Path(sys.executable).parent / name
    known = os.environ.get("TUNELINE_SHELL_PATH", "").split(os.pathsep)
    return name if str(here.parent) in known else _relative(str(here), root)


def _relative(path: str, root: Path) -> str:
    """Shorter from the checkout's root, when that is where the user is."""
    is_at_root = os.environ.get("TUNELINE_CALLED_FROM", str(root)) == str(root)
    return path.removeprefix(f"{root}/") if is_at_root else path
