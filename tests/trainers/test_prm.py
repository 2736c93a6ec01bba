import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.testing import assert_close
from transformers import BertConfig, BertForTokenClassification

from tests.models import VOCAB, tiny_causal_lm, tiny_step_classifier
from tests.trainers.build import build, weights
from tests.trainers.rows import character_tokenizer, solutions
from tuneline.data.steps import tokenize_for_steps
from tuneline.errors import DataError, ModelError
from tuneline.losses.steps import step_loss
from tuneline.scores import label_logits

ROW = {"prompt": "ab?", "completions": ["one", "by"], "labels": [True, False]}


def tokenized(row=ROW, **options):
    options = {"step_separator": ".", **options}
    return tokenize_for_steps(Dataset.from_list([row]), character_tokenizer(), **options).dataset[0]


def test_a_label_stands_where_its_separator_ends():
    row = tokenized()
    assert character_tokenizer().convert_ids_to_tokens(row["input_ids"]) == list("ab?one.by.")
    assert (row["step_ends"], row["step_labels"]) == ([6, 9], [1, 0])


def test_the_last_step_alone_may_be_trained_on():
    row = tokenized(last_step_only=True)
    assert (row["step_ends"], row["step_labels"]) == ([9], [0])


@pytest.mark.parametrize(
    ("options", "text", "ends"),
    [
        ({"max_prompt_length": 1}, "?one.by.", [4, 7]),
        ({"max_completion_length": 6}, "ab?one.by", [6]),
        ({"max_length": 9}, "ab?one.by", [6]),
    ],
    ids=str,
)
def test_prompts_lose_their_beginning_and_solutions_their_end(options, text, ends):
    row = tokenized(**options)
    assert character_tokenizer().convert_ids_to_tokens(row["input_ids"]) == list(text)
    assert row["step_ends"] == ends


def test_rows_without_a_label_left_are_dropped_and_counted():
    rows = [ROW, {"prompt": "a rather long question?", "completions": ["one"], "labels": [True]}]
    found = tokenize_for_steps(Dataset.from_list(rows), character_tokenizer(), step_separator=".", max_length=9)
    assert found.dataset["step_ends"][:] == [[6]]
    assert (found.report.num_dropped, found.report.num_truncated) == (1, 1)
    assert found.report.num_tokens_cut == 1 + 27


def test_tokenised_rows_are_taken_as_they_are():
    row = tokenized({"input_ids": [5, 6, 7, 8], "labels": [-100, 1, -100, 0]})
    assert (row["step_ends"], row["step_labels"]) == ([1, 3], [1, 0])


def test_the_loss_of_a_step_is_the_cross_entropy_of_its_label():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert_close(step_loss(logits, torch.tensor([1, 0])), torch.tensor([math.log(4 / 3), math.log(4)]))


def padded(rows):
    """Rows as transformers' token classifiers take them."""
    width = max(len(row["input_ids"]) for row in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[i, : len(row["input_ids"])] = 1
        labels[i, row["step_ends"]] = torch.tensor(row["step_labels"])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_loss_and_gradients_are_those_of_transformers_on_padded_rows(tmp_path):
    trainer = build("prm", tmp_path)
    rows = trainer.train_dataset.select(range(5)).to_list()
    trees = trainer.data_collator(rows)
    step_loss(label_logits(trainer.model, trees), trees.target_ids).mean().backward()

    plain = tiny_step_classifier().eval()
    expected = plain(**padded(rows)).loss
    expected.backward()
    found = step_loss(label_logits(trainer.model, trees), trees.target_ids).mean()
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, parameter in plain.named_parameters():
        assert_close(trainer.model.get_parameter(name).grad, parameter.grad, atol=1e-5, rtol=1e-4)


def test_an_encoder_takes_padded_rows(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForTokenClassification(BertConfig(vocab_size=VOCAB, **sizes)).eval()
    trainer = build("prm", tmp_path, model=model)
    rows = trainer.train_dataset.select(range(5)).to_list()
    trees = trainer.data_collator(rows)
    found = step_loss(label_logits(trainer.model, trees), trees.target_ids).mean()
    assert_close(found, model(**padded(rows)).loss)


def test_what_is_logged(tmp_path):
    trainer = build("prm", tmp_path, options={"max_steps": 1}, eval_dataset=solutions(5))
    trainer.train()
    assert set(trainer.state.log_history[0]) == {
        "loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens", "accuracy",
    }  # fmt: skip
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1


def test_it_learns_which_steps_are_right(tmp_path):
    options = {"max_steps": 25, "learning_rate": 1e-2, "per_device_train_batch_size": 16}
    trainer = build("prm", tmp_path, options=options)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert lines[-1]["accuracy"] > 0.9


def test_an_adapter_and_the_new_head_train_and_nothing_else(tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = build("prm", tmp_path, options={"max_steps": 2, "learning_rate": 1e-3}, peft_config=lora)
    before = weights(trainer)
    trainer.train()
    changed = {name for name, weight in weights(trainer).items() if not torch.equal(before[name], weight)}
    assert any("lora" in name for name in changed)
    assert any("score" in name for name in changed)
    assert all("lora" in name or "modules_to_save" in name for name in changed)


def test_a_model_by_name_gets_a_new_head(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "lm")
    trainer = build("prm", tmp_path, model=str(tmp_path / "lm"))
    assert trainer.model.score.out_features == 2


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ModelError, match="AutoModelForTokenClassification"):
        build("prm", tmp_path, model=tiny_causal_lm())
    with pytest.raises(ModelError, match="num_labels=3"):
        build("prm", tmp_path, model=tiny_step_classifier(num_labels=3))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**ROW, "labels": [True]}, "1 entries"),
        ({**ROW, "prompt": [{"role": "user", "content": "hi"}]}, "list of texts"),
        ({"prompt": "a", "completion": "b"}, "completions"),
    ],
    ids=["a label missing", "dialogue", "other columns"],
)
def test_rows_that_are_no_solutions_are_refused(row, said):
    with pytest.raises(DataError, match=said):
        tokenized(row)


def test_a_separator_without_tokens_is_refused():
    with pytest.raises(DataError, match="step_separator"):
        tokenized(step_separator="")
