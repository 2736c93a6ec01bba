import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.testing import assert_close

from tests.models import tiny_causal_lm
from tests.parity.sides import nudged
from tests.trainers.build import build, weights
from tests.trainers.rows import character_tokenizer, judged, preferences
from tuneline.errors import ConfigError, DataError
from tuneline.trainers.density_ratio import fit_logistic_regression

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


def first_log(trainer):
    trainer.train()
    return trainer.state.log_history[0]


def test_the_first_loss_is_log_two(tmp_path):
    log = first_log(build("bco", tmp_path, options={"max_steps": 1}))
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log["delta"] == 0


def test_metrics_have_the_names_of_trl(tmp_path):
    log = first_log(build("bco", tmp_path, options={"max_steps": 1}))
    assert set(log) == {
        "loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens", "entropy", "delta",
        "logits/chosen", "logits/rejected", "logps/chosen", "logps/rejected",
        "rewards/chosen", "rewards/rejected", "rewards/margins",
    }  # fmt: skip


def test_the_loss_is_that_of_rewards_around_the_mean_of_the_step(tmp_path):
    def logged(per_device, accumulation):
        options = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation}
        model = tiny_causal_lm()
        trainer = build("bco", tmp_path, options={"max_steps": 1, **options}, model=model, ref_model=nudged(model))
        log = first_log(trainer)
        return log, trainer.running

    log, running = logged(4, 2)
    assert running.count == 8
    chosen = sum(line["label"] for line in judged().select(range(8)).to_list())
    whole, _ = logged(8, 1)
    assert whole["delta"] == pytest.approx(running.mean, abs=1e-6)
    assert 0 < chosen < 8
    for name in ("loss", "grad_norm", "rewards/margins"):
        assert log[name] == pytest.approx(whole[name], rel=1e-5)


def test_the_mean_runs_over_all_steps_and_stands_still_in_evaluation(tmp_path):
    trainer = build("bco", tmp_path, options={"max_steps": 3, "learning_rate": 1e-3}, eval_dataset=judged(4))
    trainer.train()
    assert trainer.running.count == 3 * 8
    before = trainer.running.state_dict()
    metrics = trainer.evaluate()
    assert trainer.running.state_dict() == before
    assert metrics["eval_delta"] == pytest.approx(before["mean"])


def test_precomputed_reference_equals_the_one_asked_on_the_way(tmp_path):
    asked, precomputed = (
        build("bco", tmp_path, options={"precompute_ref_log_probs": p, "max_steps": 3}) for p in (0, 1)
    )
    assert precomputed.train().training_loss == pytest.approx(asked.train().training_loss, abs=1e-5)


def test_only_an_adapter_trains(tmp_path):
    trainer = build("bco", tmp_path, options={"max_steps": 2, "learning_rate": 1e-3}, peft_config=LORA)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert all(torch.equal(before[n], after[n]) for n in before if "lora" not in n)
    assert any(not torch.equal(before[n], after[n]) for n in before if "lora" in n)


def test_it_learns_which_completions_are_desired(tmp_path):
    options = {"max_steps": 12, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "beta": 0.5}
    trainer = build("bco", tmp_path, options=options)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert lines[-1]["loss"] < 0.2
    assert lines[-1]["rewards/margins"] > 2


def test_a_resume_without_the_running_mean_is_refused(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    build("bco", tmp_path, options=options).train()
    (tmp_path / "checkpoint-1" / "running.json").unlink()
    with pytest.raises(ConfigError, match="running mean"):
        build("bco", tmp_path, options=options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def letters(input_ids, attention_mask):
    """(prompts, 2): how many tokens, and how many of them are a's."""
    is_a = (input_ids == character_tokenizer().convert_tokens_to_ids("a")) & (attention_mask == 1)
    return torch.stack([attention_mask.sum(1), is_a.sum(1)], 1).float()


# prompts with a's are mostly desirable
UNEVEN = Dataset.from_list(
    [
        {"prompt": "aaa?" if a else "bbb?", "completion": f" it is {i}", "label": label}
        for i, (a, label) in enumerate([(1, True)] * 6 + [(0, True)] * 2 + [(1, False)] * 2 + [(0, False)] * 6)
    ]
)


def test_undesirable_rows_weigh_as_much_as_their_prompts_are_likely_among_the_desirable(tmp_path):
    embedding = {"embedding_func": letters, "embedding_tokenizer": character_tokenizer()}
    rows = build("bco", tmp_path, train_dataset=UNEVEN, eval_dataset=UNEVEN, **embedding).train_dataset
    ratios, labels, prompts = (rows[name][:] for name in ("density_ratio", "label", "prompt_ids"))
    assert all(ratio == 1 for ratio, label in zip(ratios, labels, strict=True) if label)
    with_a, without = ratios[8], ratios[-1]
    # 6 in 8 against 2 in 8 is three times, a little less for the penalty on the classifier's weights
    assert 2 < with_a < 3
    assert with_a * without == pytest.approx(0.5 * with_a)  # 1/3 is below min_density_ratio
    assert prompts[8] != prompts[-1]


def test_the_weights_reach_the_loss(tmp_path):
    embedding = {"embedding_func": letters, "embedding_tokenizer": character_tokenizer()}
    options = {"max_steps": 1, "per_device_train_batch_size": 16}
    trainer = build("bco", tmp_path, train_dataset=UNEVEN, options=options, **embedding)
    expected = math.log(2) * sum(trainer.train_dataset["density_ratio"][:]) / 16
    assert first_log(trainer)["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_classifier_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(60, 5, generator=generator, dtype=torch.double)
    labels = vectors[:, 0] + torch.randn(60, generator=generator) > 0.8
    weight, bias = fit_logistic_regression(vectors, labels)
    theirs = linear_model.LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=1000).fit(vectors, labels)
    assert_close(weight, torch.tensor(theirs.coef_[0]), atol=1e-5, rtol=1e-5)
    assert_close(bias, torch.tensor(theirs.intercept_[0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"embedding_func": letters}, ConfigError, "embedding_tokenizer is missing"),
        ({"options": {"min_density_ratio": 20.0}}, ConfigError, "max_density_ratio"),
        (
            {
                "embedding_func": letters,
                "embedding_tokenizer": character_tokenizer(),
                "train_dataset": judged().filter(lambda row: row["label"]),
            },
            DataError,
            "label=False",
        ),
    ],
    ids=["half an embedding", "bounds", "one label"],
)
def test_settings_that_cannot_work_are_refused(arguments, error, said, tmp_path):
    with pytest.raises(error, match=said):
        build("bco", tmp_path, **arguments)


def test_pairs_are_taken_apart_and_long_prompts_lose_their_beginning(tmp_path):
    trainer = build("bco", tmp_path, train_dataset=preferences(4), options={"max_length": 30})
    assert trainer.train_dataset["label"][:] == [True] * 4 + [False] * 4
    whole = build("bco", tmp_path, train_dataset=preferences(4)).train_dataset[3]
    cut = trainer.train_dataset[3]
    assert cut["completion_ids"] == whole["completion_ids"]
    assert cut["prompt_ids"] == whole["prompt_ids"][-len(cut["prompt_ids"]) :]
    assert len(cut["prompt_ids"] + cut["completion_ids"]) == 30
