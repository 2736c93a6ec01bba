"""PPO, GRPO, RLOO and DPO against the policy that is known to be best.

    python -m examples.analytic_optimum [--method ppo,grpo,rloo,dpo] [--exact] [--folder FOLDER]

On a task whose completions can all be listed, the policy that maximises reward less the KL penalty is a formula. This
program trains a small model by each method, measures by enumeration how far from that policy it ends, and does so too
for settings whose loss leads elsewhere. It prints a table and writes `analytic-optimum.json` and `analytic-optimum.svg`
into the folder; rows that are already in the file there and were not asked for are kept. See docs/analytic-optimum.md.

A row takes one to three minutes of one processor core. Nothing is downloaded. The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from examples.analytic_optimum_plot import plot
from examples.analytic_optimum_settings import SETTINGS
from examples.analytic_optimum_task import total_variation
from examples.analytic_optimum_training import Outcome, run

METHODS = ("ppo", "rloo", "grpo", "dpo")

Row = dict[str, Any]


def row_of(outcome: Outcome) -> Row:
    """What the files hold of a setting: distances are total variations, one a prompt."""
    return {
        "seconds": round(outcome.seconds, 1),
        "from_optimum": rounded(outcome.distances),
        "fixed_point_from_optimum": rounded(outcome.expected_distances),
        "from_fixed_point": rounded(total_variation(outcome.logps, outcome.expected_logps)),
        "reference_from_optimum": rounded(total_variation(outcome.ref_logps, outcome.best_logps)),
        "curve": [[round(share, 4), round(distance, 4)] for share, distance in outcome.curve],
        "probabilities": {
            name: [rounded(prompt.exp()) for prompt in logps]
            for name, logps in (
                ("reference", outcome.ref_logps),
                ("optimum", outcome.best_logps),
                ("policy", outcome.logps),
            )
        },
    }


def rounded(values: Any) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(rows: dict[str, Row]) -> str:
    """The rows in Markdown, in the order of `SETTINGS`; those that should end at the optimum in bold type."""
    lines = [
        "| method | setting | completions | fixed point | trained: mean | worst prompt | why |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting in (s for s in SETTINGS if s.name in rows):
        row = rows[setting.name]
        longest = setting.task.max_tokens
        lengths = f"1 to {longest} tokens" if setting.task.ends else "1 token" if longest == 1 else f"{longest} tokens"
        distances = (mean(row["fixed_point_from_optimum"]), mean(row["from_optimum"]), max(row["from_optimum"]))
        strong = "**" if setting.is_exact else ""
        numbers = " | ".join(f"{strong}{distance:.3f}{strong}" for distance in distances)
        lines.append(f"| {setting.method.upper()} | {setting.title} | {lengths} | {numbers} | {setting.reason} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Row]:
    """All rows of the file, by the names of their settings."""
    parser = argparse.ArgumentParser(description="PPO, GRPO, RLOO and DPO against the policy that is best.")
    parser.add_argument("--method", default=",".join(METHODS), help="several with commas between; all by default")
    parser.add_argument("--exact", action="store_true", help="only settings whose fixed point is the optimum")
    parser.add_argument("--folder", type=Path, default=Path("docs"), help="where the files go; docs by default")
    given = parser.parse_args(arguments)
    methods = given.method.split(",")
    if unknown := set(methods) - set(METHODS):
        parser.error(f"--method {', '.join(sorted(unknown))} is unknown; use some of {', '.join(METHODS)}.")
    given.folder.mkdir(parents=True, exist_ok=True)
    path = given.folder / "analytic-optimum.json"
    rows: dict[str, Row] = json.loads(path.read_text()) if path.exists() else {}
    for setting in SETTINGS:
        if setting.method in methods and (setting.is_exact or not given.exact):
            rows[setting.name] = row_of(run(setting))
            path.write_text(json.dumps(rows) + "\n")
            print(setting.name, f"{mean(rows[setting.name]['from_optimum']):.3f}", flush=True)
    print(table(rows))
    (given.folder / "analytic-optimum.svg").write_text(plot(rows))
    return rows


if __name__ == "__main__":
    main()
