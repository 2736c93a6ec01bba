"""The last TRL with PPO, in a folder of its own beside the TRL that is installed: later ones have none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.runs import ROOT
from tuneline.errors import ConfigError

TRL_WITH_PPO = "1.12.0"
PEERS = ROOT / ".work" / "peers"


def trl_with_ppo(say: Callable[[str], None], folder: Path = PEERS) -> Path:
    """The folder with its packages, to go before those installed; fetched from the package index the first time.

    It is fetched without its dependencies: it runs on the transformers that is installed.

    Raises:
        ConfigError: it is not there and cannot be fetched.
    """
    packages = folder / f"trl-{TRL_WITH_PPO}"
    if (packages / "trl" / "experimental" / "ppo").is_dir():
        return packages
    say(f"fetching TRL {TRL_WITH_PPO} into {packages}")
    unfinished = folder / f"trl-{TRL_WITH_PPO}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(unfinished), f"trl=={TRL_WITH_PPO}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ConfigError(
            f"TRL {TRL_WITH_PPO}, the last one with PPO, is not in {packages} and could not be fetched:\n"
            f"{run.stderr[-1000:].strip()}\n"
            f"With a network this happens by itself; without one, unpack the wheel of trl {TRL_WITH_PPO} into that "
            "folder, or measure one side with --sides tuneline."
        )
    shutil.rmtree(packages, ignore_errors=True)
    unfinished.rename(packages)
    return packages
