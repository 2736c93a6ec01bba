"""evaluate: every policy of the line on the test prompts, and the reward model on held-out pairs. One process.

Written to reports/evaluate: `metrics.json`; in `files/` the `figures`, `evaluation.json` (what the report
shows), `samples.json` (completions side by side), `completions.parquet` (all of them), and `items.jsonl` with
`held_out.json` (results item by item; see `stages.evaluate_items`). The same seed gives the same bytes.

Metrics, where POLICY is `sft`, `dpo`, `ppo` or `grpo`; those marked * have a 95 % interval, `NAME_low` to `NAME_high`:

- `POLICY/accuracy`*: share of prompts with a known solution answered rightly, as `evaluate.verifier` has it;
  `POLICY/accuracy/TASK`* for each task
- `POLICY/pass_at_K`*: probability that one of K completions is right, for each K in `evaluate.pass_at`
- `POLICY/accuracy_gain`*: its difference from SFT, paired by prompt
- `POLICY/win_rate_verifier`*, `POLICY/win_rate_reward`*: share of prompts answered better than by SFT, ties half, as
  the verifier (right or wrong) and as the reward model have it
- `POLICY/reward`*: mean score of the reward model
- `POLICY/kl`*: KL from SFT in nats a completion, by the log-ratios of completions sampled at temperature 1;
  `POLICY/kl_exact`*: the same by the whole next-token distributions on them
- `POLICY/completion_length`: mean, in tokens, with the one that ended it; `POLICY/share_cut_off`: share that reached
  `max_new_tokens` without an end
- `best_of_N/accuracy`*, `best_of_N/reward`*: of N answers of SFT the one that the reward model likes best, for each N
  in `evaluate.best_of_n`, estimated from all answers drawn (`tuneline.evaluation.best_of_n`); `best_of_N/kl_bound`:
  how far from SFT that is at most, log N - (N - 1) / N nats
- `reward_model/pairwise_accuracy`*: share of pairs ranked rightly; `reward_model/pairwise_accuracy/TASK`* where pairs
  have tasks
- `reward_model/calibration_error`: of sigmoid(score difference), ten bins
- `reward_model/length_pearson`, `reward_model/length_spearman`: correlation of score and completion length
- `reward_model/prefers_longer`*: share of pairs whose longer answer scores higher, beside
  `reward_model/longer_is_chosen`, the share whose longer answer is the chosen one
- `num_prompts`, `num_prompts_too_long`, `num_pairs`, `num_pairs_too_long`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from stages.completions_done import Progress
from stages.context import StageContext
from stages.evaluate_files import write_results
from stages.gates import Gates, check_reward_model
from stages.off import why_off
from stages.schema import REWARD_METRICS, PipelineConfig
from tuneline.data.formats import as_reply, maybe_extract_prompt
from tuneline.data.rendering import split_at_prompt
from tuneline.errors import DataError, StageError
from tuneline.evaluation.accuracy import verify
from tuneline.evaluation.divergence import Divergences, Sampled, kl_divergences
from tuneline.evaluation.measures import Answers, Draws, ScoredPairs
from tuneline.evaluation.prompts import Prompts, read_prompts
from tuneline.evaluation.sampling import Completion, encode_prompts, sample_completions
from tuneline.evaluation.scoring import encode_answers, score_groups
from tuneline.logging import get_logger
from tuneline.models import prepare_for_trees
from tuneline.models.loading import load_causal_lm, load_reward_model, load_tokenizer
from tuneline.rewards import RewardFunctions, get_reward

logger = get_logger(__name__)

POLICIES = ("sft", "dpo", "ppo", "grpo")  # in the order of the line; a later one is one more name
BASELINE = "sft"
VERIFIER_TIMEOUT = 3600.0  # seconds for the answers of a policy: an evaluation without them is none


@dataclass(frozen=True)
class Policy:
    """A model that is asked."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def main() -> None:
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    context = StageContext.load("evaluate")
    if context.config.evaluate.best_of_n and context.config.why_off("reward") is None:
        check_reward_model(Gates.of(context), Path(REWARD_METRICS))
    evaluate(context.config, Path.cwd(), context.report, context.metrics_file)


def evaluate(config: PipelineConfig, root: Path, report: Path, metrics_file: Path) -> dict[str, float]:
    """Evaluate what lies in `root`/models on `root`/data/prepared, write the report folder, and return its metrics.

    Raises:
        StageError: there is no policy to evaluate.
        DataError: the test set has no prompt that leaves room for an answer.
    """
    models, prepared = root / "models", root / "data" / "prepared"
    names = [name for name in POLICIES if _is_model(models / name)]
    if not names:
        raise StageError(f"evaluate: {models} has none of {', '.join(POLICIES)}; run the stages before this one.")
    prompts, num_too_long = fitting_prompts(prepared / "test.parquet", models / names[0], config)
    has_reward_model = _is_model(models / "reward")
    off = {name: reason for name in (*POLICIES, "reward") if (reason := why_off(models / name)) is not None}
    notes = _notes(prompts, num_too_long, names, has_reward_model, off)
    for note in notes:
        logger.warning("%s", note)
    num_left_out = {"num_prompts_too_long": num_too_long}

    num_best = max(config.evaluate.best_of_n, default=0) if has_reward_model and BASELINE in names else 0
    answers, draws, progress = ask(models, names, prompts, config, metrics_file, num_best)
    pairs = None
    if has_reward_model:
        model, tokenizer = _load(load_reward_model, models / "reward", config)
        answers = score_answers(model, tokenizer, prompts, answers)
        if draws is not None:
            texts = [[completion.text for completion in group] for group in draws.completions]
            draws = replace(draws, rewards=_scores(model, tokenizer, prompts, texts))
        pairs, num_left_out["num_pairs_too_long"] = score_pairs(
            model, tokenizer, prepared / "preference" / "eval.parquet"
        )
    settings = {**config.evaluate.model_dump(), "seed": config.seed, "policies": names, "baseline": BASELINE}
    metrics = write_results(report, prompts, answers, draws, pairs, settings, notes, num_left_out)
    progress.write(metrics)
    logger.info("evaluated %d policies on %d prompts: %d metrics", len(names), len(prompts), len(metrics))
    return metrics


def fitting_prompts(path: Path, policy: Path, config: PipelineConfig) -> tuple[Prompts, int]:
    """The test prompts that leave the policies room for `max_new_tokens`, and how many do not."""
    prompts = read_prompts(path, config.evaluate.num_samples)
    lengths = [len(ids) for ids in encode_prompts(load_tokenizer(str(policy)), prompts.columns)]
    max_length = _max_length(AutoConfig.from_pretrained(policy))
    if max_length is None:
        return prompts, 0
    room = max_length - config.evaluate.max_new_tokens
    fitting = [i for i, length in enumerate(lengths) if length <= room]
    if not fitting:
        raise DataError(
            f"No prompt of {path} leaves room for evaluate.max_new_tokens={config.evaluate.max_new_tokens}: the "
            f"shortest has {min(lengths)} tokens, and the model reads {max_length}; lower max_new_tokens."
        )
    return prompts.select(fitting), len(prompts) - len(fitting)


def ask(
    models: Path,
    names: Sequence[str],
    prompts: Prompts,
    config: PipelineConfig,
    metrics_file: Path,
    num_best: int = 0,
) -> tuple[dict[str, Answers], Draws | None, Progress]:
    """What each policy answers, and how far it is from the baseline; policies are loaded one after the other.

    Args:
        num_best: completions a prompt that are drawn from the baseline at temperature 1, for best-of-n.
    """
    temperature, num_completions = config.evaluate.temperature, config.evaluate.num_completions
    # Divergence and best-of-n are about what a policy says at temperature 1.
    num_plain = {name: num_best if name == BASELINE else int(BASELINE in names) for name in names}
    num_drawn = {n: max(num_completions, num_plain[n]) if temperature == 1 else num_completions for n in names}
    num_asked = sum(num_drawn.values()) + (sum(num_plain.values()) if temperature != 1 else 0)
    progress = Progress(metrics_file, num_asked * len(prompts))
    baseline: PreTrainedModel | None = None
    draws: Draws | None = None
    verifier = _verifier(config.evaluate.verifier)
    answers = {}
    for name in names:
        policy = Policy(name, *_load(load_causal_lm, models / name, config))
        drawn = plain = _sample(policy, prompts, temperature, config, progress, num_drawn[name])
        correct = correct_plain = _verify(verifier, prompts, drawn)
        if temperature != 1 and num_plain[name]:
            plain = _sample(policy, prompts, 1.0, config, progress, num_plain[name])
            correct_plain = _verify(verifier, prompts, plain) if num_best and name == BASELINE else []
        divergences = None
        if name == BASELINE:
            baseline = policy.model
            if num_best:
                draws = Draws([one[:num_best] for one in plain], [one[:num_best] for one in correct_plain])
        elif baseline is not None:
            divergences = _divergences(policy, baseline, prompts, [group[0] for group in plain])
        by_prompt = [one[:num_completions] for one in correct] if num_completions > 1 else []
        answers[name] = Answers(
            [group[0] for group in drawn], [one[0] for one in correct], None, divergences, by_prompt
        )
    return answers, draws, progress


def _verifier(name: str | None) -> RewardFunctions | None:
    return None if name is None else RewardFunctions([get_reward(name)], timeout=VERIFIER_TIMEOUT, on_error="raise")


def _verify(
    verifier: RewardFunctions | None, prompts: Prompts, drawn: Sequence[Sequence[Completion]]
) -> list[list[bool | None]]:
    """(prompts, completions) whether each is right."""
    by_copy = [verify(verifier, prompts, of_one) for of_one in zip(*drawn, strict=True)]
    return [list(of_prompt) for of_prompt in zip(*by_copy, strict=True)]


def score_with(
    folder: Path, prompts: Prompts, answers: Mapping[str, Answers], config: PipelineConfig
) -> dict[str, Answers]:
    """The same answers with the scores of the reward model in a folder."""
    return score_answers(*_load(load_reward_model, folder, config), prompts, answers)


def score_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, answers: Mapping[str, Answers]
) -> dict[str, Answers]:
    """The same answers with the reward model's scores."""
    texts = [
        [completion.text for completion in of_prompt]
        for of_prompt in zip(*(a.completions for a in answers.values()), strict=True)
    ]
    scores = _scores(model, tokenizer, prompts, texts)
    return {
        name: replace(of_one, rewards=[of_prompt[i] for of_prompt in scores])
        for i, (name, of_one) in enumerate(answers.items())
    }


def _scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, texts: Sequence[Sequence[str]]
) -> list[list[float]]:
    """(prompts, answers) what the reward model says of each answer; the same answer has the same score."""
    different = [sorted(set(of_prompt)) for of_prompt in texts]
    numbers = [i for i, of_prompt in enumerate(different) for _ in of_prompt]
    rows = prompts.select(numbers)
    replies = [as_reply(p, text) for p, text in zip(rows.values, (t for one in different for t in one), strict=True)]
    encoded = encode_answers(tokenizer, {**rows.columns, "reply": replies}, "reply")
    limit = _max_length(model.config)
    ids = iter(sequence[:limit] for sequence in encoded)
    scores = score_groups(model, [[next(ids) for _ in of_prompt] for of_prompt in different])
    known = [dict(zip(texts_of, scores_of, strict=True)) for texts_of, scores_of in zip(different, scores, strict=True)]
    return [[by_text[text] for text in of_prompt] for by_text, of_prompt in zip(known, texts, strict=True)]


def score_pairs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> tuple[ScoredPairs, int]:
    """The held-out pairs that the reward model can read, with their scores, and how many it cannot."""
    rows = [maybe_extract_prompt(row) for row in pq.read_table(path).to_pylist()]
    if not rows:
        raise DataError(f"{path} has no rows; give prepare more preferences, or a larger eval_fraction.")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    prompts = encode_prompts(tokenizer, columns)
    chosen, rejected = (encode_answers(tokenizer, columns, side) for side in ("chosen", "rejected"))
    longest = [max(map(len, pair)) for pair in zip(chosen, rejected, strict=True)]
    limit = _max_length(model.config) or max(longest)
    fitting = [i for i, length in enumerate(longest) if length <= limit]
    if not fitting:
        raise DataError(f"No pair of {path} fits the {limit} tokens that the reward model reads.")
    scores = score_groups(model, [(chosen[i], rejected[i]) for i in fitting])
    starts = {i: split_at_prompt(prompts[i], chosen[i], rejected[i]) for i in fitting}
    tasks = columns.get("task", [None] * len(rows))
    pairs = ScoredPairs(
        chosen_scores=[of_chosen for of_chosen, _ in scores],
        rejected_scores=[of_rejected for _, of_rejected in scores],
        chosen_lengths=[len(chosen[i]) - starts[i] for i in fitting],
        rejected_lengths=[len(rejected[i]) - starts[i] for i in fitting],
        tasks=[tasks[i] for i in fitting],
    )
    return pairs, len(rows) - len(fitting)


def _sample(
    policy: Policy,
    prompts: Prompts,
    temperature: float,
    config: PipelineConfig,
    progress: Progress,
    num_completions: int,
) -> list[list[Completion]]:
    """(prompts, completions)"""
    kind = (
        f"{policy.name}/completions_done"
        if temperature == config.evaluate.temperature
        else f"{policy.name}/completions_done_at_temperature_1"
    )
    drawn = sample_completions(
        policy.model,
        policy.tokenizer,
        encode_prompts(policy.tokenizer, prompts.columns),
        max_new_tokens=config.evaluate.max_new_tokens,
        temperature=temperature,
        seed=config.seed,
        batch_size=config.evaluate.batch_size,
        num_completions=num_completions,
        on_progress=lambda num_done: progress.write({kind: num_done}, num_done),
    )
    progress.step += len(prompts) * num_completions
    num_tokens = sum(completion.num_tokens for group in drawn for completion in group)
    logger.info(
        "%s answered %d prompts %d times at temperature %g, with %d tokens",
        *(policy.name, len(prompts), num_completions, temperature, num_tokens),
    )
    return drawn


def _divergences(
    policy: Policy, baseline: PreTrainedModel, prompts: Prompts, completions: Sequence[Completion]
) -> Divergences | None:
    own, other = (m.config.get_text_config().vocab_size for m in (policy.model, baseline))
    if own != other:
        logger.warning("%s has %d tokens and %s %d: no divergence", policy.name, own, BASELINE, other)
        return None
    ids = encode_prompts(policy.tokenizer, prompts.columns)
    sampled = [Sampled(prompt, completion.ids) for prompt, completion in zip(ids, completions, strict=True)]
    return kl_divergences(policy.model, baseline, sampled)


def _load(
    load: Callable[..., PreTrainedModel], folder: Path, config: PipelineConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of the line that reads trees, on the accelerator if there is one, and its tokenizer."""
    model = load(str(folder), dtype=config.model.dtype)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.eval()
    prepare_for_trees(model)
    return model, load_tokenizer(str(folder))


def _max_length(config: PretrainedConfig) -> int | None:
    """How many tokens a model reads at most; some architectures name no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _is_model(folder: Path) -> bool:
    return folder.is_dir() and why_off(folder) is None


def _notes(
    prompts: Prompts, num_too_long: int, names: Sequence[str], has_reward_model: bool, off: Mapping[str, str]
) -> list[str]:
    """What is missing or was left out, for the log and the report; what the config turns off is not missing."""
    notes = [f"{name} is {reason}." for name, reason in off.items()]
    gone = [name for name in POLICIES if name not in names and name not in off]
    notes += [f"models/{name} does not exist: that policy is left out." for name in gone]
    if BASELINE not in names:
        notes.append(f"Without models/{BASELINE} there are no win rates, gains and divergences.")
    if not has_reward_model and "reward" not in off:
        notes.append(
            "models/reward does not exist: scores, win rate by reward model, best-of-n and calibration are left out."
        )
    num_solved = sum(solution is not None for solution in prompts.solutions)
    if not num_solved:
        notes.append("No test prompt has a solution: accuracy and win rate by verifier are left out.")
    elif num_solved < len(prompts):
        notes.append(f"{len(prompts) - num_solved} of {len(prompts)} test prompts have no solution: not in accuracy.")
    if num_too_long:
        notes.append(f"{num_too_long} test prompts leave no room for an answer and are left out.")
    return notes


if __name__ == "__main__":
    main()
