"""Makes the workload in a process of its own, so that the one that starts the others stays small."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmarks import FOLDER
from benchmarks.workload import Workload, prepare
from tuneline.errors import TunelineError

if __name__ == "__main__":
    folder = Path(os.environ[FOLDER])
    workload = Workload(**json.loads((folder / "workload.json").read_text(encoding="utf-8")))
    try:
        prepare(workload, folder)
    except TunelineError as error:
        sys.exit(str(error))
