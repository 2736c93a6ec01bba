"""Names of options and arguments that have changed work, and are said once."""

import inspect
import logging
from dataclasses import fields

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.build import QUIET
from tests.trainers.rows import character_tokenizer, demonstrations, preferences
from tuneline import DPOConfig, DPOTrainer, GRPOConfig, PPOConfig, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from tuneline.errors import ConfigError
from tuneline.models.one_label import score_of_two_labels


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr("tuneline.trainers.older_names._said", set())


def test_an_older_option_sets_that_of_today_and_is_said_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "tuneline"):
        for _ in range(2):
            config = SFTConfig(**QUIET, output_dir=str(tmp_path), max_seq_length=77, warmup_ratio=0.1)
    assert (config.max_length, config.warmup_steps) == (77, 0.1)
    assert caplog.messages == ["SFTConfig: max_seq_length is max_length today; warmup_ratio is warmup_steps today"]


def test_both_names_at_once_and_names_never_heard_of_are_errors():
    with pytest.raises(ConfigError, match="max_seq_length is max_length today, and both are given"):
        SFTConfig(**QUIET, max_seq_length=77, max_length=70)
    with pytest.raises(TypeError, match="max_sequence_length"):
        SFTConfig(**QUIET, max_sequence_length=77)
    with pytest.raises(TypeError, match="tokeniser"):
        SFTTrainer(tiny_causal_lm(), tokeniser=character_tokenizer())


def test_fields_and_signatures_have_the_names_of_today():
    for config in (SFTConfig, DPOConfig, GRPOConfig, PPOConfig):
        assert "max_seq_length" not in {one.name for one in fields(config)}
        assert "eval_strategy" in inspect.signature(config.__init__).parameters
        assert "evaluation_strategy" not in inspect.signature(config.__init__).parameters
    assert "processing_class" in inspect.signature(SFTTrainer).parameters
    assert "tokenizer" not in inspect.signature(SFTTrainer).parameters


@pytest.mark.parametrize("args", ["none", "the trainer's", "those of transformers"])
def test_a_trainer_takes_options_that_were_arguments_once(args, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    given = {
        "none": None,
        "the trainer's": SFTConfig(**QUIET, output_dir=str(tmp_path), learning_rate=1e-3),
        "those of transformers": TrainingArguments(**QUIET, output_dir=str(tmp_path), learning_rate=1e-3),
    }[args]
    texts = demonstrations(4).rename_column("prompt", "story").remove_columns("completion")
    with caplog.at_level(logging.WARNING, "tuneline"):
        trainer = SFTTrainer(
            tiny_causal_lm(),
            given,
            train_dataset=texts,
            tokenizer=character_tokenizer(),
            max_seq_length=9,
            dataset_text_field="story",
        )
    assert isinstance(trainer.args, SFTConfig)
    assert (trainer.args.max_length, trainer.args.dataset_text_field) == (9, "story")
    assert trainer.args.learning_rate == (2e-5 if args == "none" else 1e-3)
    assert max(map(len, trainer.train_dataset["input_ids"])) == 9
    assert caplog.messages == [
        "SFTTrainer: tokenizer is processing_class today",
        "SFTTrainer: max_seq_length is an option of SFTConfig; dataset_text_field is an option of SFTConfig",
        "SFTConfig: max_seq_length is max_length today",
    ]


def test_an_option_given_twice_has_to_agree(tmp_path):
    config = DPOConfig(**QUIET, output_dir=str(tmp_path), beta=0.2)
    arguments = {"train_dataset": preferences(4), "tokenizer": character_tokenizer()}
    assert DPOTrainer(tiny_causal_lm(), None, config, beta=0.2, **arguments).args.beta == 0.2
    with pytest.raises(ConfigError, match=r"beta=0.3, and beta=0.2 in its configuration"):
        DPOTrainer(tiny_causal_lm(), None, config, beta=0.3, **arguments)


def test_a_classifier_of_two_labels_scores_by_its_log_odds(tmp_path):
    sizes = dict(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    model = BertForSequenceClassification(BertConfig(**sizes, num_labels=2)).eval()
    torch.nn.init.normal_(model.classifier.bias)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        scored = score_of_two_labels(model)(input_ids=ids).logits
    assert_close(scored, (logits[:, 1] - logits[:, 0])[:, None])
    model.save_pretrained(tmp_path)
    assert BertForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 1


def test_a_decoder_of_two_labels_is_taken_as_well(tmp_path):
    model = tiny_reward_model()
    model.score = torch.nn.Linear(32, 2, bias=False)
    model.config.num_labels = model.num_labels = 2
    RewardTrainer(
        model,
        RewardConfig(**QUIET, output_dir=str(tmp_path)),
        train_dataset=preferences(4),
        processing_class=character_tokenizer(),
    )
    assert model.config.num_labels == 1
