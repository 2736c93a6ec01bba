"""The stage from end to end, on tiny random models that a character tokenizer feeds."""

import json
import math
import shutil

import pyarrow.parquet as pq
import pytest

from stages.evaluate import evaluate
from stages.off import OFF_NOTE
from stages.schema import PipelineConfig
from tests.data.tiny_tokenizers import character_tokenizer
from tests.models import tiny_causal_lm, tiny_reward_model
from tuneline.data.storage import write_parquet
from tuneline.errors import DataError, StageError

TASKS = ("adding", "<b>sorting</b>")


def question(i):
    return [{"role": "user", "content": f"{i} + {i + 1} ="}]


def answer(text):
    return [{"role": "assistant", "content": str(text)}]


def config(**options):
    settings = {"num_samples": None, "temperature": 0.0, "max_new_tokens": 6, "batch_size": 4, "num_side_by_side": 3}
    settings["best_of_n"] = [1, 2, 4]
    source = {"path": "rows.jsonl"}
    return PipelineConfig.model_validate(
        {
            "name": "tiny",
            "model": {"name_or_path": "models/base"},
            "prepare": {"preferences": source},
            "evaluate": {**settings, **options},
        }
    )


@pytest.fixture
def root(tmp_path):
    tokenizer = character_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "eos_token_id": 0, "pad_token_id": 0}
    models = {
        "sft": tiny_causal_lm("qwen2", seed=1, **sizes),
        "dpo": tiny_causal_lm("qwen2", seed=2, **sizes),
        "ppo": tiny_causal_lm("qwen2", seed=5, **sizes),
        "grpo": tiny_causal_lm("qwen2", seed=4, **sizes),
        "reward": tiny_reward_model("qwen2", seed=3, **sizes),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / "models" / name)
        tokenizer.save_pretrained(tmp_path / "models" / name)
    test = [{"prompt": question(i), "solution": str(2 * i + 1), "task": TASKS[i % 2]} for i in range(6)]
    pairs = [{"prompt": question(i), "chosen": answer(2 * i + 1), "rejected": answer("many")} for i in range(5)]
    prepared = tmp_path / "data" / "prepared"
    write_parquet({prepared / "test.parquet": test, prepared / "preference" / "eval.parquet": pairs})
    return tmp_path


def run(root, name="first", **options):
    return evaluate(config(**options), root, root / name, root / name / "metrics.jsonl")


def read(root, path, name="first"):
    return json.loads((root / name / path).read_text())


def test_an_evaluation_measures_every_policy_and_the_reward_model(root):
    metrics = run(root)
    assert metrics == read(root, "metrics.json")
    assert {"num_prompts": 6, "num_pairs": 5, "num_prompts_too_long": 0}.items() <= metrics.items()
    for policy in ("sft", "dpo", "ppo", "grpo"):
        assert metrics[f"{policy}/accuracy"] == 0  # a random model
        assert metrics[f"{policy}/accuracy_low"] == 0 < metrics[f"{policy}/accuracy_high"] < 1
        assert f"{policy}/accuracy/adding" in metrics
        assert f"{policy}/accuracy/_b_sorting_b_" in metrics
        assert 0 < metrics[f"{policy}/completion_length"] <= 6
        assert metrics[f"{policy}/reward_low"] <= metrics[f"{policy}/reward"] <= metrics[f"{policy}/reward_high"]
    assert metrics["dpo/win_rate_verifier"] == 0.5  # both are always wrong
    assert metrics["dpo/kl_exact"] > 0
    assert "sft/kl" not in metrics
    assert 0 <= metrics["reward_model/pairwise_accuracy"] <= 1
    assert {"reward_model/calibration_error", "reward_model/length_spearman", "reward_model/prefers_longer"} <= set(
        metrics
    )

    figures = {path.name for path in (root / "first" / "files" / "figures").glob("*.svg")}
    names = ("accuracy", "lengths", "reward_kl", "accuracy_kl", "reliability", "pair_scores", "policy_scores")
    assert figures == {f"{name}.svg" for name in names}
    samples = read(root, "files/samples.json")
    assert len(samples) == 3
    assert samples[0]["prompt"] == question(0)
    assert samples[0]["answers"]["dpo"]["correct"] is False
    assert len(pq.read_table(root / "first" / "files" / "completions.parquet")) == 24
    assert read(root, "files/evaluation.json")["notes"] == []


def test_the_best_of_n_from_sft_is_measured_beside_its_bound(root):
    metrics = run(root, temperature=1.0)
    rewards = [metrics[f"best_of_{n}/reward"] for n in (1, 2, 4)]
    assert rewards == sorted(rewards)
    assert rewards[0] < rewards[2]
    assert metrics["best_of_1/kl_bound"] == 0
    assert metrics["best_of_4/kl_bound"] == pytest.approx(math.log(4) - 3 / 4)
    assert metrics["best_of_2/reward_low"] <= rewards[1] <= metrics["best_of_2/reward_high"]
    assert metrics["best_of_2/accuracy"] == 0  # a random model
    assert set(read(root, "files/evaluation.json")["best_of_n"]) == {"1", "2", "4"}
    # the same completions as at another temperature of the evaluation, where they are drawn besides
    other = run(root, "other", temperature=0.0)
    assert {k: v for k, v in other.items() if "best_of" in k} == {k: v for k, v in metrics.items() if "best_of" in k}
    without = run(root, "without", temperature=1.0, best_of_n=[])
    assert without == {name: value for name, value in metrics.items() if "best_of" not in name}


def test_two_evaluations_give_the_same_bytes(root):
    run(root, "first", temperature=0.7)
    run(root, "second", temperature=0.7)
    files = [path.relative_to(root / "first") for path in (root / "first").rglob("*.*") if path.suffix != ".jsonl"]
    assert len(files) > 8
    for file in files:
        assert (root / "first" / file).read_bytes() == (root / "second" / file).read_bytes(), file


def test_progress_goes_up_to_the_end_and_closes_with_all_metrics(root):
    metrics = run(root)
    lines = [json.loads(line) for line in (root / "first" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    # six prompts: four policies, all but sft once more for the divergence, sft four times for the best of four
    assert {line["max_steps"] for line in lines} == {steps[-1]} == {66}
    assert lines[-1]["metrics"] == metrics


def test_a_policy_equal_to_the_baseline_ties_with_it(root):
    for file in (root / "models" / "sft").iterdir():
        (root / "models" / "dpo" / file.name).write_bytes(file.read_bytes())
    metrics = run(root, temperature=1.0)
    assert metrics["dpo/win_rate_reward"] == 0.5
    assert metrics["dpo/kl"] == metrics["dpo/kl_exact"] == 0
    assert metrics["dpo/accuracy_gain"] == 0
    assert metrics["dpo/reward"] == metrics["sft/reward"]


def test_what_is_missing_is_said_and_left_out(root):
    write_parquet({root / "data" / "prepared" / "test.parquet": [{"prompt": "2 + 2 ="}, {"prompt": "3 + 3 ="}]})
    (root / "models" / "reward").rename(root / "models" / "elsewhere")
    (root / "models" / "sft").rename(root / "models" / "gone")
    for name in ("ppo", "grpo"):
        shutil.rmtree(root / "models" / name)
    metrics = run(root)
    assert set(metrics) == {"num_prompts", "num_prompts_too_long", "dpo/completion_length", "dpo/share_cut_off"}
    notes = " ".join(read(root, "files/evaluation.json")["notes"])
    for missing in ("models/sft", "models/reward", "solution", "win rate"):
        assert missing in notes


def test_prompts_without_room_for_an_answer_are_left_out_and_counted(root):
    path = root / "data" / "prepared" / "test.parquet"
    write_parquet({path: [{"prompt": "x" * 125, "solution": "1"}, {"prompt": "1 + 0 =", "solution": "1"}]})
    metrics = run(root)  # the models read 128 tokens, and an answer may have 6
    assert (metrics["num_prompts"], metrics["num_prompts_too_long"]) == (1, 1)
    with pytest.raises(DataError, match="max_new_tokens=125"):
        run(root, max_new_tokens=125)


def test_without_a_policy_there_is_nothing_to_evaluate(root):
    for name in ("sft", "dpo", "ppo", "grpo"):
        (root / "models" / name).rename(root / name)
    with pytest.raises(StageError, match="none of sft, dpo, ppo, grpo"):
        run(root)


def test_stages_that_are_off_are_passed_over_and_named(root):
    for name in ("dpo", "reward"):
        shutil.rmtree(root / "models" / name)
        (root / "models" / name).mkdir()
        (root / "models" / name / OFF_NOTE).write_text("off: prepare.preferences is null\n")
    metrics = run(root)
    assert {"sft/accuracy", "grpo/accuracy_gain"} <= set(metrics)
    assert not [name for name in metrics if name.startswith(("dpo", "reward"))]
    notes = ["dpo is off: prepare.preferences is null.", "reward is off: prepare.preferences is null."]
    assert read(root, "files/evaluation.json")["notes"] == notes


def test_several_completions_a_prompt_estimate_pass_at_k(root):
    path = root / "data" / "prepared" / "test.parquet"
    rows = [{"prompt": question(i), "solution": "\\d" if i % 2 else "nothing"} for i in range(6)]
    write_parquet({path: rows})
    options = {"temperature": 1.0, "num_completions": 4, "pass_at": [1, 2, 4]}
    metrics = run(root, verifier="tests.evaluation.digits.has_solution", **options)
    for policy in ("sft", "grpo"):
        one, two, four = (metrics[f"{policy}/pass_at_{k}"] for k in (1, 2, 4))
        assert 0 < one <= two <= four <= 0.5
        assert metrics[f"{policy}/pass_at_2_low"] <= two <= metrics[f"{policy}/pass_at_2_high"]
    alone = run(root, "alone", verifier="tests.evaluation.digits.has_solution", temperature=1.0)
    assert alone["sft/accuracy"] == metrics["sft/accuracy"]  # the first completion is the one that is drawn alone
