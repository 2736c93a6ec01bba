"""collect: pairs of completions of a policy of the line, and, where no person labels them, their labels. One process.

Written to the stage's final folder (becomes data/collected), the same bytes on every run: `pairs.jsonl`
(`tuneline.collection.pairs`) and `labels.jsonl` (`tuneline.collection.labelling`), which is empty where people label;
and to its report folder `metrics.json`:

- `num_prompts`, `num_completions`, and what became of the latter: `num_empty`, `num_duplicates`, `num_unscored`,
  `num_cut_off` (kept: an answer without an end is one to like less), `num_without_pair` (prompts), `num_pairs`
- `num_preferences`, `num_ties`, `num_without_label`: of the labels
- `reward_model_accuracy`: share of these preferences that the line's reward model, which has not learned from them,
  ranks rightly; where it does not label itself
- `mean_length`, in tokens; `chosen_longer`: share of preferences for the text with more characters

A time lies in none of them: what is labelled when is kept by the store of labels, `tuneline.collection.store`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import torch
import transformers
from transformers import AutoConfig

from stages.completions_done import Progress
from stages.context import StageContext
from stages.identity import output_hashes
from stages.schema import REWARD_MODEL, PipelineConfig
from stages.schema_collect import CollectSection, JudgeSection
from stages.storage import publish_folder
from tuneline.collection.labelling import (
    Label,
    agreement_with_scores,
    labels_from_judge,
    labels_from_scores,
    score_completions,
    write_labels,
)
from tuneline.collection.pairs import Candidate, Pair, make_pairs, write_pairs
from tuneline.errors import DataError, StageError
from tuneline.evaluation.sampling import Completion, encode_prompts, sample_completions
from tuneline.judges import BasePairwiseJudge, OpenAIPairwiseJudge, UrlPairwiseJudge
from tuneline.logging import get_logger
from tuneline.models import prepare_for_trees
from tuneline.models.loading import load_causal_lm, load_reward_model, load_tokenizer
from tuneline.rewards import RewardFunctions, RewardModel, get_reward
from tuneline.rollout.protocol import rollout_seed

logger = get_logger(__name__)

SCORING_TIMEOUT = 3600.0  # seconds for all completions: labels without them are none
EXACT_MATCH = "exact_match_reward"
Row = dict[str, Any]


def main() -> None:
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    context = StageContext.load("collect")
    policy = context.config.collected_policy
    content = output_hashes(policy, Path.cwd()).get(f"models/{policy}", "")
    with publish_folder(context.final) as aside:
        collect(context.config, Path.cwd(), aside, context.report, context.metrics_file, content)


def collect(
    config: PipelineConfig, root: Path, final: Path, report: Path, metrics_file: Path, policy_hash: str
) -> dict[str, float]:
    """Sample, pair and label; the metrics.

    Raises:
        DataError: there are no prompts, or not one with two different answers.
        StageError: there is no policy.
    """
    options = config.collect
    assert options is not None
    policy = root / "models" / config.collected_policy
    if not (policy / "config.json").is_file():
        raise StageError(f"collect: {policy} holds no model; run the stages before this one.")
    rows = draw_prompts(root / "data" / "prepared" / "grpo" / "train.parquet", options, config.seed)
    rows, num_too_long, drawn = ask(policy, rows, config, metrics_file)
    texts = [[(one.text, one.ids) for one in group] for group in drawn]
    scores = _scores(options, root, config.model.dtype, rows, texts)
    groups = [
        [Candidate(text, score) for (text, _), score in zip(group, of_group, strict=True)]
        for group, of_group in zip(texts, scores, strict=True)
    ]
    pairs, counts = make_pairs(
        rows,
        groups,
        pairs_per_prompt=options.pairs_per_prompt,
        seed=config.seed,
        policy=policy_hash,
        round=options.round,
    )
    if not pairs:
        raise DataError(
            f"{policy} answers none of {len(rows)} prompts in two ways; raise collect.temperature or num_completions."
        )
    pairs = _with_reward_scores(pairs, root, config)
    labels = _labels(pairs, options, policy_hash)
    final.mkdir(parents=True, exist_ok=True)
    write_pairs(final / "pairs.jsonl", pairs)
    write_labels(final / "labels.jsonl", labels)
    metrics: dict[str, float] = {f"num_{name}": number for name, number in counts.as_dict().items()}
    metrics |= {
        "num_prompts_too_long": num_too_long,
        **_length_metrics(drawn),
        **_label_metrics(pairs, labels, options),
    }
    report.mkdir(parents=True, exist_ok=True)
    (report / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    logger.info("%s: %s", config.collected_policy, ", ".join(f"{name} {value:g}" for name, value in metrics.items()))
    return metrics


def draw_prompts(path: Path, options: CollectSection, seed: int) -> list[Row]:
    """So many rows, in an order that prompt and seed decide; a round takes those behind the last one's, and at the end
    begins again.

    Raises:
        DataError: the file has none.
    """
    rows = pq.read_table(path).to_pylist()
    if not rows:
        raise DataError(f"{path} has no prompts; give prepare.prompts, or demonstrations that have some.")

    def place(row: Row) -> str:
        return hashlib.sha256(repr((seed, row["prompt"])).encode()).hexdigest()

    rows.sort(key=place)
    start = (options.round - 1) * options.num_prompts % len(rows)
    return (rows[start:] + rows[:start])[: options.num_prompts]


def ask(
    policy: Path, rows: list[Row], config: PipelineConfig, metrics_file: Path
) -> tuple[list[Row], int, list[list[Completion]]]:
    """The rows whose prompts leave room for an answer, how many do not, and the completions of each."""
    options = config.collect
    assert options is not None
    tokenizer = load_tokenizer(str(policy))
    prompts = encode_prompts(tokenizer, {name: [row.get(name) for row in rows] for name in rows[0]})
    limit = getattr(AutoConfig.from_pretrained(policy).get_text_config(), "max_position_embeddings", None)
    fitting = [i for i, ids in enumerate(prompts) if limit is None or len(ids) + options.max_new_tokens <= limit]
    if not fitting:
        raise DataError(
            f"No prompt leaves room for collect.max_new_tokens={options.max_new_tokens} in the {limit} tokens that "
            f"{policy} reads; lower it."
        )
    model = load_causal_lm(str(policy), dtype=config.model.dtype)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.eval()
    prepare_for_trees(model)
    progress = Progress(metrics_file, len(fitting) * options.num_completions)
    drawn = sample_completions(
        model,
        tokenizer,
        [prompts[i] for i in fitting],
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=rollout_seed(config.seed, "collect", options.round),
        batch_size=options.batch_size,
        num_completions=options.num_completions,
        on_progress=lambda num_done: progress.write({"completions_done": num_done}, num_done),
    )
    return [rows[i] for i in fitting], len(rows) - len(fitting), drawn


def _scores(
    options: CollectSection, root: Path, dtype: str, rows: list[Row], texts: list[list[tuple[str, list[int]]]]
) -> list[list[float | None]]:
    """(prompts, completions); None where no scorer labels."""
    if options.labels == "verifier":
        name = options.verifier or EXACT_MATCH
        if options.verifier is None and all(row.get("solution") is None for row in rows):
            raise DataError("collect.labels is verifier, and no prompt has a solution; name a collect.verifier.")
        scorer: Any = get_reward(name)
    elif options.labels == "reward":
        scorer = _reward_model(root, dtype)
    else:
        return [[None] * len(group) for group in texts]
    return _score(scorer, rows, texts)


def _score(scorer: Any, rows: list[Row], texts: list[list[tuple[str, list[int]]]]) -> list[list[float | None]]:
    """(prompts, completions) what one reward gives, asked for no longer than SCORING_TIMEOUT."""
    functions = RewardFunctions([scorer], timeout=SCORING_TIMEOUT, on_error="raise")
    try:
        return score_completions(functions, rows, texts)
    finally:
        functions.close()


def _reward_model(root: Path, dtype: str) -> RewardModel:
    folder = str(root / REWARD_MODEL)
    model = load_reward_model(folder, dtype=dtype).to("cuda" if torch.cuda.is_available() else "cpu")
    return RewardModel(model, load_tokenizer(folder))


def _with_reward_scores(pairs: list[Pair], root: Path, config: PipelineConfig) -> list[Pair]:
    """What the reward model, which has not seen these pairs, makes of them; as they are where the line has none."""
    options = config.collect
    assert options is not None
    if options.labels == "reward" or config.why_off("reward") is not None:
        return pairs
    prompts: list[Row] = [{"prompt": pair.prompt} for pair in pairs]
    texts: list[list[tuple[str, list[int]]]] = [[(pair.a, []), (pair.b, [])] for pair in pairs]
    scores = _score(_reward_model(root, config.model.dtype), prompts, texts)
    return [
        pair if a is None or b is None else replace(pair, reward_scores=(a, b))
        for pair, (a, b) in zip(pairs, scores, strict=True)
    ]


def _labels(pairs: Sequence[Pair], options: CollectSection, policy_hash: str) -> list[Label]:
    match options.labels:
        case "verifier":
            annotator = f"verifier {options.verifier or EXACT_MATCH}"
            return labels_from_scores(pairs, annotator=annotator, how="verifier", margin=options.margin)
        case "reward":
            return labels_from_scores(pairs, annotator="reward model", how="reward", margin=options.margin)
        case "judge":
            assert options.judge is not None
            judge, name = _judge(options.judge)
            return labels_from_judge(judge, pairs, annotator=f"judge {name}")
        case _:
            return []


def _judge(section: JudgeSection) -> tuple[BasePairwiseJudge, str]:
    """The judge, and what it is called among annotators."""
    if section.url is not None:
        judge = UrlPairwiseJudge(section.url, timeout=section.timeout, token_variable=section.token_variable)
        return judge, judge.endpoint.shown
    assert section.base_url is not None
    assert section.model is not None
    chat = OpenAIPairwiseJudge(
        section.model,
        section.system_prompt,
        None,
        base_url=section.base_url,
        token_variable=section.token_variable,
        timeout=section.timeout,
    )
    return chat, section.model


def _length_metrics(drawn: Sequence[Sequence[Completion]]) -> dict[str, float]:
    every = [one for group in drawn for one in group]
    return {
        "num_cut_off": sum(not one.finished for one in every),
        "mean_length": sum(one.num_tokens for one in every) / len(every),
    }


def _label_metrics(pairs: Sequence[Pair], labels: Sequence[Label], options: CollectSection) -> dict[str, float]:
    if options.labels == "person":
        return {}
    preferences = [label for label in labels if label.choice != "tie"]
    metrics: dict[str, float] = {
        "num_preferences": len(preferences),
        "num_ties": len(labels) - len(preferences),
        "num_without_label": len(pairs) - len(labels),
    }
    by_id = {pair.id: pair for pair in pairs}
    longer = [
        (len(by_id[one.pair].a) - len(by_id[one.pair].b)) * (1 if one.choice == "a" else -1) for one in preferences
    ]
    if longer:
        metrics["chosen_longer"] = sum(0.5 if more == 0 else float(more > 0) for more in longer) / len(longer)
    agreed = agreement_with_scores(pairs, labels)
    return metrics if agreed is None else {**metrics, "reward_model_accuracy": agreed}


if __name__ == "__main__":
    main()
