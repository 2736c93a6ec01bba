"""ORPO, CPO and TPO: preference without a reference."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.testing import assert_close

from tests.models import tiny_causal_lm
from tests.trainers.build import QUIET, build, weights
from tests.trainers.rows import character_tokenizer, preferences
from tuneline import CPOConfig, CPOTrainer
from tuneline.errors import ConfigError, DataError
from tuneline.logprobs import token_logprobs
from tuneline.trainers.orpo import is_completion

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
PAIR_METRICS = {
    "loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens", "mean_token_accuracy",
    "logits/chosen", "logits/rejected", "logps/chosen", "logps/rejected",
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "own"),
    [("orpo", {"nll_loss", "log_odds_ratio", "log_odds_chosen"}), ("cpo", {"nll_loss"}), ("tpo", {"entropy"})],
)
def test_metrics_have_the_names_of_trl(method, own, tmp_path):
    trainer = build(method, tmp_path, options={"max_steps": 1})
    trainer.train()
    assert set(trainer.state.log_history[0]) == PAIR_METRICS | own


def test_orpo_reads_the_likelihood_of_prompts_but_their_odds_never(tmp_path):
    trainer = build("orpo", tmp_path)
    rows = trainer.train_dataset.select(range(2)).to_list()
    trees = trainer.collate(rows)
    assert_close(trees.columns["prompt_lengths"], torch.tensor([len(row["prompt_ids"]) for row in rows]))
    in_completion = is_completion(trees)
    chosen, rejected = trees.sequence_ids == 0, trees.sequence_ids == 1
    assert trees.target_ids[chosen & in_completion].tolist() == rows[0]["chosen_ids"]
    assert trees.target_ids[chosen & ~in_completion].tolist() == rows[0]["prompt_ids"][1:]
    assert trees.target_ids[rejected].tolist() == rows[0]["rejected_ids"]
    assert in_completion[rejected].all()


def test_prompts_as_targets_have_the_log_probabilities_of_a_sequence_alone(tmp_path):
    trainer = build("orpo", tmp_path)
    row = trainer.train_dataset[1]
    trees = trainer.collate([row])
    together = token_logprobs(trainer.model, trees).logprobs[trees.sequence_ids == 0]
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
    alone = tiny_causal_lm()(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    assert_close(together, alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("method", ["orpo", "cpo"])
def test_completions_are_cut_and_counted(method, tmp_path):
    trainer = build(method, tmp_path, options={"max_completion_length": 4})
    assert max(map(len, trainer.train_dataset["rejected_ids"])) == 4
    assert trainer.tokenization_reports["train_dataset"].num_truncated == 16


@pytest.mark.parametrize("method", ["orpo", "cpo", "tpo"])
def test_only_an_adapter_trains(method, tmp_path):
    trainer = build(method, tmp_path, options={"max_steps": 2, "learning_rate": 1e-3}, peft_config=LORA)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert all(torch.equal(before[n], after[n]) for n in before if "lora" not in n)
    assert any(not torch.equal(before[n], after[n]) for n in before if "lora" in n)


@pytest.mark.parametrize(
    ("method", "options"),
    [("orpo", {"beta": 1.0}), ("cpo", {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.0})],
    ids=str,
)
def test_it_learns_which_completions_are_preferred(method, options, tmp_path):
    options = {"max_steps": 10, "learning_rate": 5e-3, "per_device_train_batch_size": 16, **options}
    trainer = build(method, tmp_path, options=options)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"] + 0.5
    assert lines[-1]["rewards/accuracies"] > 0.9


def test_the_loss_alphapo_is_simpo_without_likelihood(tmp_path):
    args = build("cpo", tmp_path, options={"loss_type": "alphapo", "alpha": 0.25}).args
    assert (args.loss_type, args.cpo_alpha, args.alpha) == ("simpo", 0.0, 0.25)


def test_a_model_may_come_from_a_function(tmp_path):
    tokenizer, args = character_tokenizer(), CPOConfig(output_dir=str(tmp_path), **QUIET)
    trainer = CPOTrainer(model_init=tiny_causal_lm, args=args, train_dataset=preferences(), processing_class=tokenizer)
    assert_close(weights(trainer), weights(build("cpo", tmp_path)))


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("cpo", {"loss_type": "sigmod"}, "sigmod"),
        ("cpo", {"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing"),
        ("cpo", {"beta": -1.0}, "beta"),
        ("orpo", {"beta": 0.0}, "beta"),
        ("tpo", {"loss_type": "simpo"}, "tpo-l"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(method, options, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        build(method, tmp_path, options=options)


def test_a_model_and_a_function_that_makes_one_are_one_too_many(tmp_path):
    with pytest.raises(ConfigError, match="both"):
        build("orpo", tmp_path, model_init=tiny_causal_lm)


def test_prompts_may_be_what_pairs_begin_with(tmp_path):
    explicit = preferences(4)
    implicit = explicit.map(
        lambda row: {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}, remove_columns="prompt"
    )
    ids = [build("cpo", tmp_path, train_dataset=rows).train_dataset["prompt_ids"][:] for rows in (explicit, implicit)]
    assert ids[0] == ids[1]


def test_a_gold_response_is_computed_only_where_it_counts(tmp_path):
    with_it, without = (build("tpo", tmp_path, options={"tpo_alpha": alpha}) for alpha in (1.0, 0.0))
    assert "reference_ids" in with_it.train_dataset.column_names
    assert "reference_ids" not in without.train_dataset.column_names


def test_a_gold_response_has_to_begin_with_the_implicit_prompt(tmp_path):
    rows = [{"chosen": "ask me? yes", "rejected": "ask me? no", "reference": "ask you? well"}]
    with pytest.raises(DataError, match="give a 'prompt'"):
        build("tpo", tmp_path, train_dataset=Dataset.from_list(rows))


def test_rows_without_a_gold_response_are_refused(tmp_path):
    with pytest.raises(DataError, match="reference"):
        build("tpo", tmp_path, train_dataset=preferences())
