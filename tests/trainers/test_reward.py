import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from tests.models import VOCAB, tiny_reward_model
from tests.trainers.build import build, weights
from tests.trainers.rows import character_tokenizer, preferences
from tuneline.errors import ModelError
from tuneline.scores import sequence_scores


def test_metrics_have_the_names_of_trl(tmp_path):
    trainer = build("reward", tmp_path, options={"max_steps": 1})
    trainer.train()
    assert set(trainer.state.log_history[0]) == {
        "loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens",
        "min_reward", "mean_reward", "max_reward", "accuracy", "margin",
    }  # fmt: skip


def test_it_learns_to_tell_the_pairs_apart(tmp_path):
    options = {"max_steps": 30, "learning_rate": 3e-3, "per_device_train_batch_size": 16}
    trainer = build("reward", tmp_path, options=options, train_dataset=preferences())
    trainer.train()
    assert trainer.state.log_history[-2]["accuracy"] == 1.0


def test_a_saved_model_scores_the_same_when_loaded_by_transformers_alone(tmp_path):
    trainer = build("reward", tmp_path, options={"max_steps": 2})
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    batch = trainer.data_collator([{"chosen_ids": [5, 6, 7, 8], "rejected_ids": [5, 6, 9]}])
    with torch.no_grad():
        assert_close(sequence_scores(trainer.model.eval(), batch)[:1], loaded(ids).logits[0])


def test_where_the_end_token_pads_the_score_is_read_where_transformers_reads_it(tmp_path):
    model = tiny_reward_model()
    model.config.pad_token_id = 1
    trainer = build("reward", tmp_path, model=model)
    trees = trainer.data_collator([{"chosen_ids": [5, 6, 7, 1], "rejected_ids": [5, 1]}])
    padded = torch.tensor([[5, 6, 7, 1], [5, 1, 1, 1]])
    with torch.no_grad():
        plain = AutoModelForSequenceClassification.from_config(model.config)
        plain.load_state_dict(trainer.model.state_dict())
        assert_close(sequence_scores(trainer.model.eval(), trees), plain.eval()(padded).logits[:, 0])


def test_a_pair_whose_one_side_begins_with_the_other_scores_both_ends(tmp_path):
    trainer = build("reward", tmp_path)
    trees = trainer.data_collator([{"chosen_ids": [5, 6, 7], "rejected_ids": [5, 6, 7, 8]}])
    assert trees.input_ids[0, trees.sequence_ends].tolist() == [7, 8]
    with torch.no_grad():
        scores = sequence_scores(trainer.model.eval(), trees)
        alone = tiny_reward_model().eval()(torch.tensor([[5, 6, 7, 8]])).logits[0]
    assert_close(scores[1:], alone)


def test_an_encoder_takes_padded_rows_and_trains(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1
    )
    model = BertForSequenceClassification(config)
    trainer = build("reward", tmp_path, model=model, options={"max_steps": 2, "learning_rate": 1e-3})
    before = weights(trainer)
    trainer.train()
    assert any(not torch.equal(before[n], w) for n, w in weights(trainer).items())


def test_lora_trains_the_adapter_and_the_new_head_alone(tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear")
    trainer = build("reward", tmp_path, peft_config=lora, options={"max_steps": 2, "learning_rate": 1e-2})
    before = weights(trainer)
    trainer.train()
    changed = {n for n, w in weights(trainer).items() if not torch.equal(before[n], w)}
    assert changed
    assert all("lora" in name or "score" in name for name in changed)
    assert any("score" in name for name in changed)


def test_more_than_one_label_is_refused(tmp_path):
    model = tiny_reward_model()
    model.config.num_labels = 3
    with pytest.raises(ModelError, match="num_labels=3"):
        build("reward", tmp_path, model=model)


def test_pairs_over_max_length_are_left_out_and_counted(tmp_path, caplog):
    rows = Dataset.from_list([*preferences(4).to_list(), {"prompt": "x" * 200, "chosen": "yes", "rejected": "no"}])
    with caplog.at_level("INFO"):
        trainer = build("reward", tmp_path, train_dataset=rows, options={"max_length": 100})
    assert len(trainer.train_dataset) == 4
    assert trainer.tokenization_reports["train_dataset"].num_dropped == 1
    assert "4 kept" in caplog.messages[0]
    assert "1 dropped" in caplog.messages[0]


def test_the_tokenizer_is_found_beside_the_model(tmp_path):
    tiny_reward_model().save_pretrained(tmp_path / "model")
    character_tokenizer().save_pretrained(tmp_path / "model")
    trainer = build("reward", tmp_path, model=str(tmp_path / "model"), processing_class=None)
    assert trainer.processing_class.pad_token == "<pad>"
