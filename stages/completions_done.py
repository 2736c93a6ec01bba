"""How far a stage that samples completions has got: the lines of its metrics.jsonl."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path


class Progress:
    """Lines of metrics.jsonl, begun anew by each run: a step is a completion."""

    def __init__(self, file: Path, max_steps: int):
        self.file, self.max_steps, self.step = file, max_steps, 0
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")

    def write(self, metrics: Mapping[str, float], num_done: int = 0) -> None:
        """`num_done` completions on top of those of finished parts."""
        line = {"step": self.step + num_done, "max_steps": self.max_steps, "timestamp": int(time.time() * 1000)}
        with self.file.open("a") as file:
            file.write(json.dumps({**line, "metrics": dict(metrics)}) + "\n")
