"""The stage collect without a model: three pairs a round, of which the verifier prefers two."""

import json
from pathlib import Path

import yaml

from tuneline.collection.labelling import labels_from_scores, write_labels
from tuneline.collection.pairs import Candidate, make_pairs, write_pairs


def main() -> None:
    options = yaml.safe_load(Path("params.yaml").read_text())["collect"]
    policy = Path("models/dpo/result.txt").read_text()
    number, is_verified = options["round"], options["labels"] == "verifier"
    rows = [{"prompt": f"round {number}, prompt {n}"} for n in range(3)]
    scores = (0.0, 1.0) if is_verified else (None, None)
    groups = [[Candidate("bad", scores[0]), Candidate("good", scores[1] if n else scores[0])] for n in range(3)]
    pairs, counts = make_pairs(rows, groups, policy=f"{len(policy):032}", round=number)
    labels = labels_from_scores(pairs, annotator="verifier", how="verifier") if is_verified else []
    Path("data/collected").mkdir(parents=True, exist_ok=True)
    write_pairs(Path("data/collected/pairs.jsonl"), pairs)
    write_labels(Path("data/collected/labels.jsonl"), labels)
    Path("reports/collect").mkdir(parents=True, exist_ok=True)
    Path("reports/collect/metrics.json").write_text(json.dumps({"num_pairs": counts.pairs}))
    with Path("collect.tries").open("a") as file:
        file.write(f"{number}\n")


if __name__ == "__main__":
    main()
