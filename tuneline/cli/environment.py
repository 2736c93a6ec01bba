"""`tuneline env`: what a bug report needs, found without importing the libraries."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from tuneline.errors import TunelineError

PACKAGES = (
    "tuneline",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "safetensors",
    "prefect",
    "dvc",
    "mlflow",
    "sqlalchemy",
)


def print_environment() -> None:
    """Prints one aligned line for each fact."""
    facts = describe_environment()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def describe_environment() -> dict[str, str]:
    """Versions, processors, memory, accelerators, servers and the checkout, as text."""
    facts = {"python": f"{platform.python_version()} ({sys.executable})", "system": platform.platform()}
    facts |= {name: _version(name) for name in PACKAGES}
    facts["cpu"] = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores usable"
    facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    facts["gpu"] = _gpus()
    for name, default in (("PREFECT_API_URL", "a temporary server"), ("MLFLOW_TRACKING_URI", "mlflow.db here")):
        facts[name] = _without_secrets(os.environ[name]) if os.environ.get(name) else f"not set: {default}"
    facts["checkout"] = _checkout()
    return facts


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "none found (no nvidia-smi)"
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi failed: {error}"
    return "; ".join(found.split("\n")).strip("; ") or "none found"


def _without_secrets(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _checkout() -> str:
    from tuneline.cli.main import find_checkout

    try:
        return str(find_checkout(Path.cwd()))
    except TunelineError:
        return "none (the current folder is not in one)"
