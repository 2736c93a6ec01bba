"""Calls of git: for those who cannot go on without its answer, and for those who can."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tuneline.errors import TunelineError


def run_git(folder: Path, *arguments: str, text: bytes | None = None, env: Mapping[str, str] | None = None) -> bytes:
    """What git prints.

    Args:
        folder: where it is called.
        text: what it reads from its standard input.
        env: variables besides those of this process.

    Raises:
        TunelineError: it is missing, or fails.
    """
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, **(env or {})},
            input=text,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise TunelineError(f"git cannot be started ({error}); it has to be installed.") from error
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise TunelineError(f"git {arguments[0]} failed in {folder}: {reason}")
    return done.stdout


def git_bytes(folder: Path, *arguments: str) -> bytes | None:
    """What git prints; None where it fails or is missing."""
    try:
        return run_git(folder, *arguments)
    except TunelineError:
        return None


def git_text(folder: Path, *arguments: str) -> str | None:
    """The same as text, without white space around it."""
    found = git_bytes(folder, *arguments)
    return None if found is None else found.decode(errors="replace").strip()
