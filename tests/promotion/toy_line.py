"""A line without models: what dpo "learns" is `dpo.launch.timeout_hours`, the share of items answered rightly."""

import hashlib
import json
import sys
from pathlib import Path

import yaml

NUM_ITEMS = 200


def main(stage: str) -> None:
    settings = yaml.safe_load(Path("params.yaml").read_text())
    report = Path("reports") / stage
    report.mkdir(parents=True, exist_ok=True)
    metrics = {"steps": 1}
    if stage == "prepare":
        Path("data/prepared").mkdir(parents=True, exist_ok=True)
        Path("data/prepared/rows.txt").write_text("rows")
    elif stage == "evaluate":
        metrics |= evaluate(settings, report / "files")
    else:
        folder = Path("models") / stage
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "skill.txt").write_text(str(settings[stage]["launch"]["timeout_hours"]))
    (report / "metrics.json").write_text(json.dumps(metrics))


def evaluate(settings, files):
    files.mkdir(parents=True, exist_ok=True)
    asked = {"max_new_tokens": settings["evaluate"]["max_new_tokens"]}
    keys = [f"item-{number}" for number in range(NUM_ITEMS)]
    lines = [
        line
        for policy in ("sft", "dpo")
        for line in items(policy, float((Path("models") / policy / "skill.txt").read_text()), keys)
    ]
    (files / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (files / "held_out.json").write_text(
        json.dumps({"digest": hashlib.sha256(json.dumps(asked).encode()).hexdigest(), "asked": asked})
    )
    return {f"{policy}/accuracy": float(Path(f"models/{policy}/skill.txt").read_text()) for policy in ("sft", "dpo")}


def items(policy, skill, keys):
    for number, key in enumerate(keys):
        yield {
            "item": key,
            "policy": policy,
            "task": "add" if number % 2 else "sort",
            "accuracy": float(number * 37 % 100 < 100 * skill),
            "num_samples": 1,
            "reward": skill,
            "kl": None if policy == "sft" else 1.0,
            "num_tokens": 10,
            "finished": True,
        }


if __name__ == "__main__":
    main(sys.argv[1])
