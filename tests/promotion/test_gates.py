"""Each gate stops a real stage that is given something broken, with the reason, and lets pass what is not."""

import json
import math
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from stages.gates import Gate, GateError, Gates, gate_metrics, judge_again, limit_of, read_gates
from stages.gates_models import tokenizer_differences
from stages.schema_gates import GatesSection
from tests.promotion.conftest import TinyLine

OFF = GatesSection(
    reward_accuracy=None, same_tokenizer=False, dpo_first_loss=None, logprob_difference=None, ended_answers=None
)


def measured(work):
    return json.loads((work / "report" / "metrics.json").read_text())


def test_a_limit_is_a_least_or_a_greatest_value_and_null_stops_nothing():
    assert Gate("ended_answers", 0.5, 0.5).passed
    assert not Gate("ended_answers", 0.4, 0.5).passed
    assert Gate("logprob_difference", 0.1, 0.1).passed
    assert not Gate("logprob_difference", 0.2, 0.1).passed
    assert not Gate("logprob_difference", math.nan, 0.1).passed
    assert not Gate("ended_answers", math.nan, 0.5).passed
    assert Gate("dpo_first_loss", 9.0, None).passed
    assert limit_of("same_tokenizer", GatesSection()) == 0.0
    assert limit_of("same_tokenizer", OFF) is None


def test_what_was_measured_is_held_against_new_limits_without_running_the_stage_again(tmp_path):
    Gates("ppo", tmp_path, GatesSection(reward_accuracy=0.5)).check("reward_accuracy", 0.6, "Train it longer.")
    assert judge_again("ppo", tmp_path, GatesSection(reward_accuracy=0.6)) == ""
    with pytest.raises(GateError, match=r"ppo was stopped by a gate\. gates\.reward_accuracy: measured 0\.6, .*0\.7"):
        judge_again("ppo", tmp_path, GatesSection(reward_accuracy=0.7))
    assert read_gates(tmp_path, OFF)[0].passed
    assert gate_metrics(tmp_path) == {"gates/reward_accuracy": 0.6}


def test_a_gate_that_was_off_when_the_stage_ran_is_said_to_be_unknown(tmp_path):
    assert "--force" in judge_again("dpo", tmp_path, GatesSection())


@pytest.mark.parametrize("stage", [pytest.param("ppo", marks=pytest.mark.slow), "grpo"])
def test_a_reward_model_that_ranks_badly_teaches_nobody(line: TinyLine, stage):
    line.configure("grpo.rewards=[{model: true}]", "gates.reward_accuracy=0.99")
    metrics = line.root / "reports" / "reward" / "metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"eval/accuracy": 0.45}))
    with pytest.raises(GateError, match=r"measured 0\.45, the limit is at least 0\.99\. .*reward\.training"):
        line.run(stage)
    line.configure("grpo.rewards=[{model: true}]", "gates.reward_accuracy=0.4")
    metrics = measured(line.run(stage))
    assert metrics["gates/reward_accuracy"] == 0.45
    assert metrics["gates/same_tokenizer"] == 0
    assert metrics["gates/logprob_difference"] < 1e-3
    assert 0 <= metrics["gates/ended_answers"] <= 1


def test_the_best_of_n_is_not_taken_by_a_reward_model_that_ranks_badly(line: TinyLine):
    line.configure("gates.reward_accuracy=1.0", "evaluate.best_of_n=[1, 2]")
    metrics = line.root / "reports" / "reward" / "metrics.json"
    metrics.write_text(json.dumps({"eval/accuracy": 0.45}))
    with pytest.raises(GateError, match="evaluate was stopped by a gate"):
        line.run("evaluate")
    line.configure("gates.reward_accuracy=1.0", "evaluate.best_of_n=[]")
    assert "sft/accuracy" in measured(line.run("evaluate"))


def test_a_reward_model_with_another_end_token_is_refused(line: TinyLine):
    other = line.root / "models" / "reward"
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.eos_token = next(token for token in tokenizer.get_vocab() if token != tokenizer.eos_token)
    tokenizer.save_pretrained(other)
    rewards = "grpo.rewards=[{model: true}]"
    line.configure(rewards)
    with pytest.raises(GateError, match="do not read alike: the end tokens are "):
        line.run("grpo")
    line.configure(rewards, "gates.same_tokenizer=false")
    assert measured(line.run("grpo"))["gates/same_tokenizer"] == 1


def test_tokenizers_differ_in_vocabulary_end_token_and_what_they_make_of_text(trained_line: TinyLine):
    own = AutoTokenizer.from_pretrained(trained_line.root / "models" / "sft")
    other = AutoTokenizer.from_pretrained(trained_line.root / "models" / "sft")
    assert tokenizer_differences(own, other, ["1 + 2", "sort 3 1"]) == []
    other.add_tokens(["1 + 2"])
    vocabulary, prompts = tokenizer_differences(own, other, ["1 + 2", "sort 3 1"])
    assert vocabulary.startswith("1 entries of their vocabularies")
    assert prompts == "1 of 2 prompts become other tokens"


def test_dpo_stops_where_policy_and_reference_are_not_the_same_at_first(line: TinyLine, monkeypatch):
    from tuneline.trainers.dpo import DPOTrainer

    plain = DPOTrainer.ref_logps
    monkeypatch.setattr(DPOTrainer, "ref_logps", lambda self, trees: plain(self, trees).roll(1) * 0.5)  # of other rows
    line.configure()
    with pytest.raises(GateError, match=r"gates\.dpo_first_loss: measured .* the limit is at most 0\.05"):
        line.run("dpo")
    monkeypatch.undo()
    assert measured(line.run("dpo"))["gates/dpo_first_loss"] < 1e-4


def test_a_first_generation_that_the_trainer_sees_otherwise_stops_the_stage(line: TinyLine, monkeypatch):
    from tuneline.rollout.transformers_engine import TransformersEngine

    line.configure("grpo.rewards=[{name: exact_match_reward}]")
    assert measured(line.run("grpo"))["gates/logprob_difference"] < 1e-3
    kept = {}

    def note(self, model, plain=TransformersEngine.sync_weights):
        kept["policy"] = model
        plain(self, model)

    def draw_otherwise(
        self, requests, sampling, plain=TransformersEngine.generate
    ):  # as from a server that missed an update
        policy = kept["policy"]
        state = {name: value.clone() for name, value in policy.state_dict().items()}
        generator = torch.Generator().manual_seed(0)
        for parameter in policy.parameters():
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        try:
            return plain(self, requests, sampling)
        finally:
            policy.load_state_dict(state)

    monkeypatch.setattr(TransformersEngine, "sync_weights", note)
    monkeypatch.setattr(TransformersEngine, "generate", draw_otherwise)
    with pytest.raises(GateError, match=r"gates\.logprob_difference: .* at most 0\.1\. So far apart are sampler"):
        line.run("grpo")


@pytest.mark.parametrize("stage", ["dpo", "grpo"])
def test_an_sft_model_that_never_ends_its_answers_is_not_trained_further(line: TinyLine, stage):
    more = ("gates.ended_answers_tokens=4", "gates.ended_answers_prompts=8")
    line.configure("gates.ended_answers=1.0", *more)
    with pytest.raises(GateError, match=rf"{stage} was stopped by a gate\. gates\.ended_answers: .* at least 1\. "):
        line.run(stage)
    line.configure("gates.ended_answers=0.0", *more)
    assert "gates/ended_answers" in measured(line.run(stage))


def test_a_resumed_run_does_not_measure_again(tmp_path):
    gates = Gates("dpo", tmp_path, GatesSection(ended_answers=0.5))
    assert not gates.has_passed("ended_answers")
    gates.check("ended_answers", 0.9, "")
    assert gates.has_passed("ended_answers")
    assert not Gates("dpo", tmp_path, GatesSection(ended_answers=0.95)).has_passed("ended_answers")


@pytest.mark.slow
def test_dvc_repro_is_stopped_by_a_gate_and_a_loosened_limit_trains_nothing_again(tmp_path, request):
    checkout = request.getfixturevalue("stage_checkout")
    checkout.configure("gates.dpo_first_loss=0.0", "gates.ended_answers=1.0", "gates.ended_answers_tokens=2")
    done = checkout.repro("dpo", check=False)
    assert done.returncode != 0
    assert "dpo was stopped by a gate" in done.stdout + done.stderr
    assert "exited with 2" in done.stdout + done.stderr
    checkout.configure("gates.ended_answers=0.0", "gates.ended_answers_tokens=2")
    checkout.repro("dpo")
    before, launches = checkout.hash_of("models/dpo"), checkout.num_launches("dpo")
    checkout.configure("gates.ended_answers=0.0", "gates.ended_answers_tokens=2", "gates.dpo_first_loss=0.04")
    assert "Running stage 'dpo'" in checkout.repro("dpo").stdout
    assert (checkout.hash_of("models/dpo"), checkout.num_launches("dpo")) == (before, launches)
    checkout.configure("gates.ended_answers=1.0", "gates.ended_answers_tokens=2", "gates.dpo_first_loss=0.04")
    assert "gates.ended_answers" in checkout.repro("dpo", check=False).stdout


@pytest.fixture
def stage_checkout(tmp_path):
    from tests.stages.checkouts import new_checkout

    checkout = new_checkout(tmp_path / "checkout")
    checkout.repro("prepare")
    checkout.repro("sft")
    yield checkout
    shutil.rmtree(checkout.root, ignore_errors=True)
