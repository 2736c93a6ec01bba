"""A stage without a model: writes its output, its metrics and its progress, or fails as `orders/NAME` says.

`orders/NAME` holds one word a try: `ok`, an exit code, `killed`, `sleep` (10 s, then ok), or `hang` (which starts a
child that hangs too).
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from stages.supervise import watch_owner

OUTPUTS = {"prepare": "data/prepared"}


def main(name: str) -> None:
    watch_owner()
    work = Path(".work") / name / "toy"
    work.mkdir(parents=True, exist_ok=True)
    with (work / "metrics.jsonl").open("a") as file:
        for step in (1, 2):
            file.write(json.dumps({"step": step, "max_steps": 2, "timestamp": 0, "metrics": {"loss": 1 / step}}) + "\n")
    with Path(f"{name}.tries").open("a") as file:
        file.write(f"{os.environ.get('TUNELINE_PARENT_RUN') or 'none'}\n")
    print(f"{name} works", flush=True)
    obey(name, len(Path(f"{name}.tries").read_text().splitlines()))
    output = Path(OUTPUTS.get(name, f"models/{name}"))
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.txt").write_text(f"{name} {Path('params.yaml').read_text()}")
    report = Path("reports") / name
    report.mkdir(parents=True, exist_ok=True)
    (report / "metrics.json").write_text(json.dumps({"steps": 2, "loss": 0.5}))


def obey(name: str, attempt: int) -> None:
    orders = Path("orders") / name
    words = orders.read_text().split() if orders.is_file() else []
    match words[attempt - 1 : attempt]:
        case ["killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["sleep"]:
            time.sleep(10)
            Path(f"{name}.done").touch()
        case ["hang"]:
            watched = "from stages.supervise import watch_owner; watch_owner(); import time; time.sleep(300)"
            subprocess.Popen([sys.executable, "-c", watched], start_new_session=True)
            print("hangs", flush=True)
            time.sleep(300)
        case [word] if word != "ok":
            print("\n".join(f"line {number} of the log" for number in range(1, 41)), flush=True)
            print(f"{name}: the toy breaks here", flush=True)
            sys.exit(int(word))


if __name__ == "__main__":
    main(sys.argv[1])
