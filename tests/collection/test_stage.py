"""The stage collect on models of a few thousand weights: what it writes, and the same again."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from stages.collect import collect, draw_prompts
from stages.cross_checks import contradictions
from stages.schema import PipelineConfig
from stages.schema_collect import CollectSection
from tests.collection.pairs import ROOT
from tuneline.collection.labelling import read_labels
from tuneline.collection.pairs import read_pairs
from tuneline.data.storage import write_parquet
from tuneline.errors import ConfigError, DataError, StageError
from tuneline.models.tiny import make_model

POLICY = "f" * 32
TINY = ROOT / "tests" / "stages" / "tiny.yaml"
LETTERS = "tests.collection.test_stage.letters"


def letters(completions, **columns):
    """A reward: how many characters come before `m`."""
    return [float(sum(c < "m" for c in reply[-1]["content"])) for reply in completions]


def config(*overrides):
    """Checked against the schema and itself; asking the trainers' classes too would take a process each."""
    settings = yaml.safe_load(TINY.read_text()) | {"collect": {"num_prompts": 5, "max_new_tokens": 6}}
    for override in overrides:
        *sections, name = override.partition("=")[0].split(".")
        place = settings
        for section in sections:
            place = place[section]
        place[name] = yaml.safe_load(override.partition("=")[2])
    made = PipelineConfig.model_validate(settings)
    wrong = contradictions(made)
    if wrong:
        raise ConfigError(" ".join(error.describe({}) for error in wrong))
    return made


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Path:
    """A checkout's models and prompts."""
    root = tmp_path_factory.mktemp("line")
    settings = config().model.init.model_dump(exclude_none=True)
    model, tokenizer = make_model(settings, 3, ["What is 1 + 2? abcdefghijklmnopqrstuvwxyz0123456789"])
    for name in ("ppo", "reward"):
        model.save_pretrained(root / "models" / name)
        tokenizer.save_pretrained(root / "models" / name)
    from transformers import AutoModelForSequenceClassification

    classifier = AutoModelForSequenceClassification.from_pretrained(root / "models" / "reward", num_labels=1)
    classifier.save_pretrained(root / "models" / "reward")
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {n} + 2?"}], "solution": str(n + 2), "task": "add"}
        for n in range(12)
    ]
    write_parquet({root / "data" / "prepared" / "grpo" / "train.parquet": rows})
    return root


def run(line, folder, *overrides):
    metrics = collect(config(*overrides), line, folder / "final", folder / "report", folder / "metrics.jsonl", POLICY)
    assert json.loads((folder / "report" / "metrics.json").read_text()) == metrics
    return metrics, read_pairs(folder / "final" / "pairs.jsonl"), read_labels(folder / "final" / "labels.jsonl")


def test_a_verifier_labels_pairs_that_lie_furthest_apart_and_the_reward_model_is_measured_on_them(line, tmp_path):
    metrics, pairs, labels = run(line, tmp_path, "collect.labels=verifier", f"collect.verifier={LETTERS}")
    assert (metrics["num_prompts"], metrics["num_completions"], len(pairs)) == (5, 20, metrics["num_pairs"])
    assert metrics["num_preferences"] + metrics["num_ties"] == len(labels) == len(pairs)
    assert 0 <= metrics["reward_model_accuracy"] <= 1
    for pair, label in zip(pairs, labels, strict=True):
        counted = [letters([[{"content": text}]])[0] for text in (pair.a, pair.b)]
        assert list(pair.scores) == counted
        assert label.choice == ("tie" if counted[0] == counted[1] else "ab"[counted[1] > counted[0]])
        assert (label.how, label.annotator, pair.policy) == ("verifier", f"verifier {LETTERS}", POLICY)
        assert set(pair.columns) == {"solution", "task"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (lines[-1]["step"], lines[-1]["max_steps"]) == (20, 20)


def test_a_run_repeats_to_the_byte_and_another_round_asks_other_prompts(line, tmp_path):
    overrides = ["collect.labels=reward"]
    first = run(line, tmp_path / "first", *overrides)
    assert run(line, tmp_path / "again", *overrides) == first
    other = run(line, tmp_path / "other", *overrides, "collect.round=2")
    asked = [{str(pair.prompt) for pair in pairs} for _, pairs, _ in (first, other)]
    assert not asked[0] & asked[1]
    assert {pair.round for pair in other[1]} == {2}
    assert {label.how for label in other[2]} == {"reward"}


def test_people_are_given_pairs_without_labels(line, tmp_path):
    metrics, pairs, labels = run(line, tmp_path, "collect.labels=person", "collect.pairs_per_prompt=2")
    assert (len(pairs), labels, pairs[0].scores) == (metrics["num_pairs"], [], None)
    assert len(pairs) > metrics["num_prompts"] - metrics["num_without_pair"]
    assert all(pair.reward_scores for pair in pairs)
    assert "num_preferences" not in metrics


def test_rounds_go_through_all_prompts_before_one_comes_again(line):
    path = line / "data" / "prepared" / "grpo" / "train.parquet"
    drawn = [draw_prompts(path, CollectSection(num_prompts=4, round=n), seed=1) for n in (1, 2, 3, 4)]
    contents = [[row["prompt"][0]["content"] for row in rows] for rows in drawn]
    assert len({text for of_round in contents[:3] for text in of_round}) == 12
    assert contents[3] == contents[0]


def test_a_policy_that_is_not_there_or_never_differs_is_said(line, tmp_path):
    with pytest.raises(StageError, match="run the stages before this one"):
        run(line, tmp_path, "collect.policy=sft")
    with pytest.raises(DataError, match=r"lower it"):
        run(line, tmp_path, "collect.max_new_tokens=127")
    with pytest.raises(DataError, match="in two ways"):
        run(line, tmp_path, "collect.temperature=0.0001", "collect.num_prompts=2")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["collect.labels=judge"], "go together"),
        (["collect.judge={url: 'http://127.0.0.1:1/'}"], "go together"),
        (["collect.labels=judge", "collect.judge={url: 'file:///etc/passwd'}"], "should begin with http"),
        (["collect.labels=judge", "collect.judge={base_url: 'http://127.0.0.1:1/v1'}"], "each needs the other"),
        (["collect.verifier=exact_match_reward"], "goes with `labels: verifier`"),
        (["collect.policy=ppo", "ppo.rewards=[]"], "no such policy"),
        (["collect.num_completions=1"], "greater than or equal to 2"),
        (["prepare.collected=none.jsonl"], "no such file"),
        (["prepare.preferences=null", "ppo.rewards=[]", "collect.labels=reward"], "no reward model"),
    ],
)
def test_contradictions_are_found_before_anything_runs(overrides, reason):
    with pytest.raises((ConfigError, ValidationError), match=reason):
        config(*overrides)


def test_the_newest_policy_is_the_last_that_is_not_off():
    assert config().collected_policy == "ppo"
    assert config("ppo.rewards=[]").collected_policy == "grpo"
    assert config("ppo.rewards=[]", "grpo.rewards=[]").files["collect_policy"] == "models/dpo"
    assert config("collect=null").files["collect_policy"] == "requirements.lock"
