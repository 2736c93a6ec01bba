"""A stage without a model, for sweeps: its metrics follow from the settings, and SWEEP_LOG gets a line each time.

SWEEP_BREAKS names a value of dpo.launch.timeout_hours with which dpo fails; SWEEP_SLOW makes a stage take seconds.
"""

import json
import os
import sys
import time
from pathlib import Path

import yaml

from stages.supervise import watch_owner

OUTPUTS = {"prepare": "data/prepared"}


def main(name: str) -> None:
    watch_owner()
    params = yaml.safe_load(Path("params.yaml").read_text())
    seed, hours = params["seed"], params["dpo"]["launch"]["timeout_hours"]
    with Path(os.environ["SWEEP_LOG"]).open("a") as log:
        log.write(f"{name} begins {seed} {hours}\n")
    slow, _, seconds = os.environ.get("SWEEP_SLOW", "").partition("=")
    time.sleep(float(seconds) if slow == name else 0)
    if name == "dpo" and os.environ.get("SWEEP_BREAKS") == str(hours):
        print("dpo: breaks as it was told", flush=True)
        sys.exit(1)
    output = Path(OUTPUTS.get(name, f"models/{name}"))
    output.mkdir(parents=True, exist_ok=True)
    (output / "result").write_text(f"{name} {seed} {hours if name == 'dpo' else ''}")
    report = Path("reports") / name
    report.mkdir(parents=True, exist_ok=True)
    metrics = {"dpo/accuracy": hours / 10 + seed / 100, "loss": 0.5} if name == "dpo" else {"loss": 0.5}
    (report / "metrics.json").write_text(json.dumps(metrics))
    with Path(os.environ["SWEEP_LOG"]).open("a") as log:
        log.write(f"{name} ends {seed} {hours}\n")


if __name__ == "__main__":
    main(sys.argv[1])
