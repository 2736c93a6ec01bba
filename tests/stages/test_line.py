"""The whole tiny line by `dvc repro`: what runs again after which change, and what DVC's users do with the results."""

import csv
import json
import re
import subprocess

import pyarrow.parquet as pq
import pytest
import yaml

from stages.schema import STAGES, TRAINING_STAGES
from tests.stages.checkouts import commit, copy_of

FIGURES = ("accuracy", "accuracy_kl", "lengths", "pair_scores", "policy_scores", "reliability", "reward_kl")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def whole(checkout_after_sft, tmp_path_factory):
    checkout = copy_of(checkout_after_sft, tmp_path_factory.mktemp("whole") / "line")
    checkout.repro()
    commit(checkout.root, "the line was run")
    return checkout


@pytest.fixture
def line(whole, tmp_path):
    return copy_of(whole, tmp_path / "line")


def out_of_date(line):
    """Stages that DVC would run because of a change of their own."""
    return set(json.loads(line.run("dvc", "status", "--json").stdout))


def stages_run(output):
    return re.findall(r"Running stage '(\w+)'", output)


def test_a_line_that_was_run_is_up_to_date_and_its_lock_unchanged(line):
    lock = (line.root / "dvc.lock").read_bytes()
    assert "up to date" in line.repro().stdout
    assert (line.root / "dvc.lock").read_bytes() == lock


def test_another_beta_runs_dpo_and_evaluate_only_and_the_old_one_comes_from_the_cache(line):
    before = line.hash_of("models/dpo")
    line.configure("dpo.training.beta=0.5")
    assert stages_run(line.repro().stdout) == ["dpo", "evaluate"]
    assert line.hash_of("models/dpo") != before
    changed = json.loads(line.run("dvc", "metrics", "diff", "--json").stdout)
    assert "reports/dpo/metrics.json" in changed
    assert "reports/sft/metrics.json" not in changed
    line.configure()
    assert not stages_run(line.repro().stdout)
    assert line.hash_of("models/dpo") == before


def test_stages_that_the_config_turns_off_leave_a_note_and_come_back_from_the_cache(line):
    before = {name: line.hash_of(f"models/{name}") for name in TRAINING_STAGES}
    line.configure("prepare.preferences=null", "ppo.rewards=[]", "grpo.rewards=[]")
    shown = line.repro().stdout
    assert "dpo is off: prepare.preferences is null" in shown
    assert line.hash_of("models/sft") == before["sft"]
    for name in ("reward", "dpo", "ppo", "grpo"):
        assert [path.name for path in (line.root / "models" / name).iterdir()] == ["OFF.txt"]
        assert json.loads((line.root / "reports" / name / "metrics.json").read_text()) == {}
    metrics = json.loads((line.root / "reports" / "evaluate" / "metrics.json").read_text())
    assert "sft/accuracy" in metrics
    assert not [name for name in metrics if name.startswith(("dpo", "ppo", "grpo", "reward", "best_of"))]
    assert "up to date" in line.repro().stdout
    line.configure()
    assert not stages_run(line.repro().stdout)
    assert {name: line.hash_of(f"models/{name}") for name in TRAINING_STAGES} == before


def test_the_reward_model_of_the_line_may_reward(line):
    line.configure("grpo.rewards=[{model: true}, {name: exact_match_reward, weight: 0.5}]")
    assert stages_run(line.repro("grpo").stdout) == ["grpo"]
    lock = yaml.safe_load((line.root / "dvc.lock").read_text())
    assert "models/reward" in {dep["path"] for dep in lock["stages"]["grpo"]["deps"]}
    rollouts = pq.read_table(line.root / "reports" / "grpo" / "rollouts" / "rollouts.parquet")
    scores, weighted, total = (rollouts[name].to_pylist() for name in _reward_columns(rollouts))
    for score, matched, reward in zip(scores, weighted, total, strict=True):
        assert reward == pytest.approx(score + 0.5 * matched, abs=1e-5)
    line.configure("grpo.rewards=[{model: true}]", "reward.training.learning_rate=2e-3")
    ran = stages_run(line.repro().stdout)
    assert (ran[0], set(ran[1:-1]), ran[-1]) == ("reward", {"ppo", "grpo"}, "evaluate")


def test_another_setting_of_ppo_runs_ppo_and_evaluate_only(line):
    line.configure("ppo.training.kl_coef=0.2")
    assert stages_run(line.repro().stdout) == ["ppo", "evaluate"]


def test_ppo_learns_from_the_reward_model_and_is_judged_by_the_verifier_too(line):
    rollouts = pq.read_table(line.root / "reports" / "ppo" / "rollouts" / "rollouts.parquet")
    assert set(rollouts["step"].to_pylist()) == {1, 3, 5}  # two steps a generation
    assert rollouts["reward"].to_pylist() == pytest.approx(rollouts["rewards/reward"].to_pylist())
    assert set(rollouts["rewards/verifier"].to_pylist()) <= {0.0, 1.0}
    with (line.root / "reports" / "ppo" / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    judged = {int(row["step"]) for row in rows if row["train/rewards/verifier/mean"]}
    assert judged == {1, 3, 5}  # the steps that a generation began with
    assert not {"train/eps"} & set(rows[0])  # how fast the machine was
    lock = yaml.safe_load((line.root / "dvc.lock").read_text())
    assert "models/reward" in {dep["path"] for dep in lock["stages"]["ppo"]["deps"]}


def _reward_columns(rollouts):
    functions = [name for name in rollouts.column_names if name.startswith("rewards/")]
    assert len(functions) == 2
    return [*functions, "reward"]


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        (["name=other"], set()),
        (["dpo.launch.timeout_hours=1.0"], set()),
        (["evaluate.max_new_tokens=4"], {"evaluate"}),
        (["reward.training.learning_rate=2e-3"], {"reward"}),
        (["ppo.training.kl_coef=0.1"], {"ppo"}),
        (["ppo.verifier=numeric_match_reward"], {"ppo"}),
        (["ppo.rewards=[{name: exact_match_reward}]"], {"ppo"}),
        (["sft.peft={r: 2}"], {"sft"}),
        (["grpo.method=rloo"], {"grpo"}),
        (["grpo.rewards=[]"], {"grpo"}),
        (["prepare.max_rows=10"], {"prepare"}),
        (["seed=4"], {"prepare", "sft", "reward", "dpo", "ppo", "grpo", "evaluate", "collect"}),
    ],
)
def test_a_setting_reaches_only_the_stages_that_read_it(line, overrides, stages):
    line.configure(*overrides)
    assert out_of_date(line) == stages


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("tuneline/losses/preference.py", {"dpo"}),
        ("tuneline/losses/reward.py", {"reward"}),
        ("tuneline/losses/policy.py", {"ppo", "grpo"}),
        ("tuneline/losses/value.py", {"ppo"}),
        ("tuneline/data/synthetic.py", {"prepare"}),
        ("tuneline/data/packing.py", {"sft"}),
        ("tuneline/evaluation/intervals.py", {"evaluate"}),
        ("tuneline/cli/main.py", set()),
    ],
)
def test_a_change_of_code_reaches_only_the_stages_that_use_it(line, file, stages):
    with (line.root / file).open("a") as source:
        source.write("\n# changed\n")
    assert out_of_date(line) == stages


def test_metrics_and_plots_are_shown(line):
    metrics = json.loads(line.run("dvc", "metrics", "show", "--json").stdout)
    files = metrics[""]["data"]
    assert {f"reports/{name}/metrics.json" for name in STAGES} == set(files)
    assert files["reports/dpo/metrics.json"]["data"]["steps"] == 6
    plots = json.loads(line.run("dvc", "plots", "show", "--json").stdout)
    assert not plots.get("errors")
    points = plots["data"]["reports/dpo/curve.csv"][0]["content"]["data"]["values"]
    assert [point["step"] for point in points] == ["1", "2", "3", "4", "5", "6"]
    assert {path for path in plots["data"] if path.endswith(".svg")} == {
        "reports/prepare/lengths.svg",
        *(f"reports/evaluate/files/figures/{name}.svg" for name in FIGURES),
    }


def test_a_clone_pulls_what_was_pushed_and_is_up_to_date(line, tmp_path):
    remote = tmp_path / "remote"
    line.run("dvc", "remote", "add", "-q", "-d", "local", str(remote))
    line.run("dvc", "push", "-q")
    commit(line.root, "a remote")
    subprocess.run(["git", "clone", "-q", str(line.root), str(tmp_path / "clone")], check=True)
    clone = type(line)(tmp_path / "clone")
    clone.run("dvc", "pull", "-q")
    assert "up to date" in clone.repro().stdout
    for path in ("models/dpo/model.safetensors", "reports/evaluate/metrics.json", "data/prepared/test.parquet"):
        assert (clone.root / path).read_bytes() == (line.root / path).read_bytes()


def test_models_are_loaded_by_transformers_alone(line):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for name in ("sft", "dpo", "ppo", "grpo"):
        AutoModelForCausalLM.from_pretrained(line.root / "models" / name)
    assert AutoModelForSequenceClassification.from_pretrained(line.root / "models" / "reward").num_labels == 1
    for name in TRAINING_STAGES:
        assert AutoTokenizer.from_pretrained(line.root / "models" / name).chat_template


def test_changed_bytes_of_a_source_are_noticed(prepared, tmp_path):
    """The source lies outside the checkout; dvc.yaml depends on it by the path in params.yaml."""
    source = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"What is {n}?", "chosen": f" It is {n}.", "rejected": " I do not know."} for n in range(100, 140)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [f"prepare.preferences={{path: {source}}}", "prepare.demonstrations=null", "prepare.test=null"]
    prepared.configure(*overrides)
    prepared.repro("prepare")
    assert "up to date" in prepared.repro("prepare").stdout
    lock = yaml.safe_load((prepared.root / "dvc.lock").read_text())
    assert str(source) in {dep["path"] for dep in lock["stages"]["prepare"]["deps"]}
    with source.open("a") as file:
        file.write(json.dumps({"prompt": "And you?", "chosen": " Well.", "rejected": " Ill."}) + "\n")
    assert stages_run(prepared.repro("prepare").stdout) == ["prepare"]
