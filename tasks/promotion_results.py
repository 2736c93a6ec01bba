"""What a decision is made on: the candidate's results from DVC's cache, the champion's from there too, or made anew."""

from __future__ import annotations

import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from stages.evaluate_items import HELD_OUT_FILE, ITEMS_FILE
from stages.schema import STAGES, PipelineConfig
from stages.schema_promotion import PromotionSection
from stages.supervise import owner_env, run_guarded
from tasks.display import display
from tasks.lineage_records import Records
from tasks.model_files import fetch_model
from tasks.promotion_gate import Results, read_results
from tasks.registry import Version
from tuneline.errors import DataError, StageError

FILES = "reports/evaluate/files"
PROMOTION_WORK = Path(".work/promotion")
_EVALUATED_AGAIN = "champion"  # the policy's name in what stages.evaluate_again writes


@dataclass(frozen=True)
class Candidate:
    """The policy that may become champion."""

    policy: str
    md5: str
    results: Results
    tags: dict[str, str]
    """`evaluation.*`: where its results are found again, and what they depend on."""


def find_candidate(records: Records, config: PipelineConfig, options: PromotionSection) -> Candidate:
    """The policy that `promotion.policy` means, with the results of the last evaluation.

    Raises:
        StageError: it was not evaluated, or what was evaluated is not what lies there now.
        DataError: the evaluation left no results item by item.
    """
    evaluation = records.current.get("evaluate")
    if evaluation is None or FILES not in evaluation.outs:
        raise StageError("nothing was evaluated in this checkout yet; run the line: `tuneline run CONFIG`.")
    files = evaluation.outs[FILES].md5
    texts = read_evaluation(records, files)
    if texts is None:
        raise DataError(f"{FILES} is neither in the checkout nor in DVC's cache; `dvc pull`, or run evaluate again.")
    policy = _policy(texts, options)
    path = f"models/{policy}"
    made = records.current.get(policy)
    evaluated, present = (record.get(path) for record in (evaluation.deps, made.outs if made else {}))
    if evaluated is None or present is None or evaluated.md5 != present.md5:
        raise StageError(f"the last evaluation is of another {path} than the one that is there; run the line again.")
    reward = evaluation.deps.get("models/reward")
    results = read_results(*texts, policy)
    tags = {"evaluation.md5": files, "evaluation.policy": policy, "evaluation.digest": results.digest}
    return Candidate(policy, present.md5, results, tags | {"evaluation.reward_md5": reward.md5 if reward else ""})


def evaluated_policies(texts: tuple[str, str]) -> list[str]:
    """Those that have results, in the order of the line."""
    return [name for name in STAGES if f'"policy": "{name}"' in texts[0]]


def read_evaluation(records: Records, files: str) -> tuple[str, str] | None:
    """The texts of items.jsonl and held_out.json of an evaluation, by the hash of its folder; None if they are gone."""
    tree = records.cache.tree(files) or {}
    places = [records.cache.path(tree[name]) if name in tree else Path() for name in (ITEMS_FILE, HELD_OUT_FILE)]
    present = records.current.get("evaluate")
    if not all(place.is_file() for place in places) and present is not None and present.outs[FILES].md5 == files:
        places = [records.root / FILES / name for name in (ITEMS_FILE, HELD_OUT_FILE)]
    if not all(place.is_file() for place in places):
        return None
    items, held_out = (place.read_text(encoding="utf-8") for place in places)
    return items, held_out


def champion_results(
    records: Records, champion: Version, candidate: Candidate, config: PipelineConfig
) -> tuple[Results, str]:
    """The champion's results on the candidate's items, and how they were come by if not from its own evaluation.

    Raises:
        ModelError: it has to be evaluated anew, and DVC's cache does not have its bytes.
        StageError: evaluating it failed.
    """
    texts = read_evaluation(records, champion.tags.get("evaluation.md5", ""))
    why = "its results are no longer in DVC's cache"
    if texts is not None:
        results = read_results(*texts, champion.tags.get("evaluation.policy", ""))
        if results.digest != candidate.results.digest:
            why = "its results are of other held-out items, or were asked for otherwise"
        elif (
            config.promotion is not None
            and config.promotion.metric == "reward"
            and not _same_scorer(champion, candidate)
        ):
            why = "its scores are another reward model's"
        else:
            return results, ""
    results = _evaluate_again(records, champion, candidate)
    return results, f"version {champion.version} was evaluated anew, as {why}"


def _same_scorer(champion: Version, candidate: Candidate) -> bool:
    name = "evaluation.reward_md5"
    return champion.tags.get(name) == candidate.tags[name]


def _evaluate_again(records: Records, champion: Version, candidate: Candidate) -> Results:
    root, digest = records.root, candidate.results.digest
    place = f"{champion.md5.removesuffix('.dir')}-{digest[:12]}-{candidate.tags['evaluation.md5'][:12]}"
    out = root / PROMOTION_WORK / place
    if not (out / ITEMS_FILE).is_file():
        model = out.with_name(f"{place}.model")
        fetch_model(root, champion.md5, model)
        display.say(f"The champion (version {champion.version}) is evaluated anew on the present held-out items ...")
        lines: list[str] = []
        env = {**os.environ, **owner_env(), "PYTHONUNBUFFERED": "1"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "stages.evaluate_again", str(model.absolute()), str(out.absolute())]
        try:
            code = run_guarded(command, env=env, on_line=lines.append)
        finally:
            shutil.rmtree(model, ignore_errors=True)
        if code != 0:
            raise StageError("the champion could not be evaluated anew:\n" + "\n".join(lines[-20:]))
    texts = (out / ITEMS_FILE).read_text(encoding="utf-8"), (out / HELD_OUT_FILE).read_text(encoding="utf-8")
    return read_results(*texts, _EVALUATED_AGAIN)


def _policy(texts: tuple[str, str], options: PromotionSection) -> str:
    known = evaluated_policies(texts)
    match options.policy:
        case "last":
            return known[-1]
        case "best":
            return max(known, key=lambda name: _mean(read_results(*texts, name), options.metric))
        case name:
            if name not in known:
                raise StageError(f"promotion.policy={name} was not evaluated; there are {', '.join(known)}.")
            return name


def _mean(results: Results, metric: str) -> float:
    values = [float(row[metric]) for row in results.rows.values() if row[metric] is not None]
    return math.fsum(values) / len(values) if values else -math.inf
