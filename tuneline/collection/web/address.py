"""The address of a store's page stays the same: what a browser has not sent yet, it keeps under that address."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tuneline.collection.store import LabelStore
from tuneline.collection.web.server import LabelServer
from tuneline.errors import TunelineError


def open_server(store: LabelStore, port: int | None = None) -> LabelServer:
    """A server under the port and token that the store had before; a file beside it, readable by its owner alone,
    remembers them.

    Args:
        port: None takes the one of before, or a free one where that is taken.

    Raises:
        TunelineError: the port that was asked for is taken.
    """
    file = store.path.with_suffix(".address")
    remembered, token = _read(file)
    try:
        server = LabelServer(store, port=remembered if port is None else port, token=token)
    except TunelineError:
        if port is not None:
            raise
        server = LabelServer(store, token=token)
    aside = file.with_suffix(".address.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        json.dump({"port": server.port, "token": server.token}, opened)
    os.replace(aside, file)
    return server


def _read(file: Path) -> tuple[int, str | None]:
    """Port and token; 0 and None where the file is missing or says neither."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return int(known["port"]), str(known["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, None
