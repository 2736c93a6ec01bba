import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from tests.models import tiny_causal_lm
from tests.trainers.build import QUIET, build, weights
from tests.trainers.rows import character_tokenizer, demonstrations
from tuneline import SFTTrainer
from tuneline.errors import ConfigError, ModelError


def test_metrics_have_the_names_of_trl(tmp_path):
    trainer = build("sft", tmp_path, options={"max_steps": 1})
    trainer.train()
    assert set(trainer.state.log_history[0]) == {
        "loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens", "entropy", "mean_token_accuracy",
    }  # fmt: skip


def test_it_learns_the_texts_by_heart(tmp_path):
    options = {"max_steps": 60, "learning_rate": 1e-2, "per_device_train_batch_size": 16}
    trainer = build("sft", tmp_path, options=options, train_dataset=demonstrations(4))
    trainer.train()
    assert trainer.state.log_history[-2]["mean_token_accuracy"] > 0.9


def test_a_saved_model_generates_the_same_when_loaded_by_transformers_alone(tmp_path):
    trainer = build("sft", tmp_path, options={"max_steps": 3, "learning_rate": 1e-2})
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").get_vocab() == character_tokenizer().get_vocab()
    ids = torch.tensor([[5, 6, 7, 8]])
    settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(loaded.generate(ids, **settings), trainer.model.eval().generate(ids, **settings))


def test_lora_leaves_the_base_alone(tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = build("sft", tmp_path, peft_config=lora, options={"max_steps": 2, "learning_rate": 1e-2})
    before = weights(trainer)
    trainer.train()
    changed = {n for n, w in weights(trainer).items() if not torch.equal(before[n], w)}
    assert changed
    assert all("lora" in name for name in changed)


def test_an_adapter_on_the_head_is_refused(tmp_path):
    lora = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    model = tiny_causal_lm("llama")
    with pytest.raises(ModelError, match="lm_head"):
        build("sft", tmp_path, model=model, peft_config=lora)


def test_plain_training_arguments_take_the_rest_from_the_defaults(tmp_path):
    trainer = SFTTrainer(
        model=tiny_causal_lm(),
        args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, learning_rate=1e-3),
        train_dataset=demonstrations(),
        processing_class=character_tokenizer(),
    )
    assert trainer.args.learning_rate == 1e-3
    assert trainer.args.max_length == 1024


def test_a_streaming_dataset_trains(tmp_path):
    rows = demonstrations()
    stream = IterableDataset.from_generator(lambda: iter(rows.to_list()))
    trainer = build("sft", tmp_path, train_dataset=stream, options={"max_steps": 3})
    trainer.train()
    assert trainer.state.global_step == 3


def test_several_evaluation_sets_are_told_apart_by_name(tmp_path):
    trainer = build("sft", tmp_path, eval_dataset={"one": demonstrations(4), "two": demonstrations(6)})
    metrics = trainer.evaluate()
    assert {"eval_one_loss", "eval_two_loss", "eval_two_mean_token_accuracy"} <= set(metrics)


def test_callbacks_see_every_step_and_log(tmp_path):
    from transformers import TrainerCallback

    class Seen(TrainerCallback):
        steps, logs = 0, 0

        def on_step_end(self, *args, **kwargs):
            self.steps += 1

        def on_log(self, *args, **kwargs):
            self.logs += 1

    seen = Seen()
    build("sft", tmp_path, options={"max_steps": 3}, callbacks=[seen]).train()
    assert (seen.steps, seen.logs) == (3, 4)  # a line a step, and the summary


def test_compute_metrics_says_why_there_are_no_logits(tmp_path):
    with pytest.raises(ConfigError, match="logits"):
        build("sft", tmp_path, compute_metrics=lambda prediction: {})


def test_an_unknown_option_is_named(tmp_path):
    from tuneline import SFTConfig

    with pytest.raises(TypeError, match="learning_rat"):
        SFTConfig(**QUIET, output_dir=str(tmp_path), learning_rat=1)


def test_texts_and_pretokenised_rows_train(tmp_path):
    texts = Dataset.from_list([{"text": "abc def"}, {"text": "ghi"}])
    tokens = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}])
    for rows in (texts, tokens):
        build("sft", tmp_path, train_dataset=rows, options={"max_steps": 1}).train()
