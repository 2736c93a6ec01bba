import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import TrainingArguments

from tests.models import tiny_causal_lm
from tests.trainers.build import QUIET, build, weights, with_plain_descent
from tests.trainers.rows import character_tokenizer, demonstrations
from tuneline import IterativeSFTConfig, IterativeSFTTrainer
from tuneline.errors import ConfigError, DataError
from tuneline.trainers.collators import collate_texts

TEXTS = [f"what is {i}? it is {i * i}." + " yes" * (i % 3) for i in range(8)]
IDS = [torch.tensor(character_tokenizer()(text)["input_ids"]) for text in TEXTS]


def trainer(folder, model=None, **options):
    settings = {**QUIET, "output_dir": str(folder), "max_steps": 20, "lr_scheduler_type": "constant", **options}
    eval_dataset = settings.pop("eval_dataset", None)
    return IterativeSFTTrainer(
        model or tiny_causal_lm(),
        args=IterativeSFTConfig(**settings),
        processing_class=character_tokenizer(),
        eval_dataset=eval_dataset,
    )


def moved(made, **arguments):
    """What each weight moves by in one call, at plain descent with a rate of 1."""
    made.optimizer = torch.optim.SGD(made.model.parameters(), lr=1.0)
    made.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(made.optimizer, lambda step: 1.0)
    made.optimizer = made.accelerator.prepare(made.optimizer)
    start = weights(made)
    made.step(**arguments)
    return {name: start[name] - end for name, end in weights(made).items()}


def test_a_step_is_that_of_sft_on_the_same_texts(tmp_path):
    options = {"max_steps": 1, "per_device_train_batch_size": 8, "max_grad_norm": 0, "dataset_kwargs": {}}
    rows = Dataset.from_list([{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in IDS])
    sft = with_plain_descent(build("sft", tmp_path, options=options, train_dataset=rows))
    start = weights(sft)
    sft.train()
    expected = {name: start[name] - end for name, end in weights(sft).items()}
    made = trainer(tmp_path, max_grad_norm=0)
    for name, gradient in moved(made, texts=TEXTS).items():
        assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5)
    line = made.state.log_history[0]
    assert line["loss"] == pytest.approx(sft.state.log_history[0]["loss"], rel=1e-5)
    assert set(line) == {
        "loss", "grad_norm", "learning_rate", "step", "num_tokens", "entropy", "mean_token_accuracy",
        *({"epoch"} & set(line)),
    }  # fmt: skip


def test_any_split_into_micro_batches_gives_the_same_step(tmp_path):
    whole, split = (
        moved(trainer(tmp_path, per_device_train_batch_size=n, gradient_accumulation_steps=8 // n), input_ids=IDS)
        for n in (8, 2)
    )
    for name, gradient in whole.items():
        assert_close(split[name], gradient, atol=1e-5, rtol=1e-5)


def test_texts_and_their_ids_are_the_same(tmp_path):
    by_text, by_ids = (moved(trainer(tmp_path), **given) for given in ({"texts": TEXTS}, {"input_ids": IDS}))
    for name, gradient in by_text.items():
        assert_close(by_ids[name], gradient, atol=0, rtol=0)


def test_labels_say_what_is_a_target_and_masks_what_is_padding(tmp_path):
    padding = torch.zeros(3, dtype=torch.long)
    padded = [torch.cat([ids, padding]) for ids in IDS]
    masks = [torch.cat([torch.ones_like(ids), padding]) for ids in IDS]
    labels = [torch.where(torch.arange(len(ids)) < 5, -100, ids) for ids in padded]
    made = trainer(tmp_path)
    rows = []

    def seen(batch):
        rows.extend(batch)
        return collate_texts(batch)

    made.data_collator = seen
    made.step(padded, masks, labels)
    found = {tuple(row["input_ids"]): row["is_target"] for row in rows}
    assert found == {tuple(ids.tolist()): [0] * 5 + [1] * (len(ids) - 5) for ids in IDS}


def test_a_call_makes_as_many_optimizer_steps_as_its_texts_fill(tmp_path):
    made = trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-3)
    made.step(texts=TEXTS[:6])
    assert made.state.global_step == 2
    assert [line["step"] for line in made.state.log_history] == [1, 2]


def test_it_learns_its_texts(tmp_path):
    made = trainer(tmp_path, learning_rate=1e-2)
    for _ in range(8):
        made.step(texts=TEXTS)
    assert made.state.log_history[-1]["loss"] < made.state.log_history[0]["loss"] / 2


def test_it_evaluates_and_logs_when_asked_to(tmp_path):
    options = {"eval_dataset": demonstrations(4), "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 2}
    made = trainer(tmp_path, **options)
    for _ in range(4):
        made.step(texts=TEXTS)
    kinds = [(line["step"], "loss" in line, "eval_loss" in line) for line in made.state.log_history]
    assert kinds == [(2, True, False), (2, False, True), (4, True, False), (4, False, True)]


def test_only_an_adapter_trains(tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    made = trainer(tmp_path, model=get_peft_model(tiny_causal_lm(), lora), learning_rate=1e-3)
    before = weights(made)
    made.step(texts=TEXTS)
    after = weights(made)
    assert all(torch.equal(before[n], after[n]) for n in before if "lora" not in n)
    assert any(not torch.equal(before[n], after[n]) for n in before if "lora" in n)


def test_a_resumed_trainer_goes_on_bit_for_bit(tmp_path):
    options = {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}

    def dropping_out():
        model = tiny_causal_lm()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        return model

    whole = trainer(tmp_path, model=dropping_out(), **options)
    for _ in range(4):
        whole.step(texts=TEXTS)
    resumed = trainer(tmp_path, model=dropping_out(), **options)
    resumed.resume(tmp_path / "checkpoint-2")
    for _ in range(2):
        resumed.step(texts=TEXTS)
    expected = weights(whole)
    assert all(torch.equal(found, expected[name]) for name, found in weights(resumed).items())
    assert resumed.state.log_history == whole.state.log_history


def test_plain_arguments_of_transformers_take_the_rest_from_the_defaults(tmp_path):
    args = TrainingArguments(**QUIET, output_dir=str(tmp_path), max_steps=3)
    made = IterativeSFTTrainer(tiny_causal_lm(), args=args, processing_class=character_tokenizer())
    assert made.args.truncation_mode == "keep_end"
    assert made.args.max_steps == 3


@pytest.mark.parametrize(("mode", "kept"), [("keep_end", slice(-6, None)), ("keep_start", slice(None, 6))])
def test_long_texts_are_cut(mode, kept, tmp_path):
    cut, given = (
        moved(trainer(tmp_path, **options), input_ids=ids)
        for options, ids in (
            ({"max_length": 6, "truncation_mode": mode}, IDS),
            ({}, [ids[kept] for ids in IDS]),
        )
    )
    for name, gradient in given.items():
        assert_close(cut[name], gradient, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({}, ConfigError, "either input_ids or texts"),
        ({"input_ids": IDS, "texts": TEXTS}, ConfigError, "either"),
        ({"texts": TEXTS, "texts_labels": TEXTS}, ConfigError, "encoder-decoders"),
        ({"texts": [1]}, DataError, "int"),
        ({"texts": ["a"]}, DataError, "no token to learn from"),
        ({"input_ids": IDS, "labels": IDS[:2]}, DataError, "2 labels"),
        ({"input_ids": IDS[:1], "labels": [IDS[0] + 1]}, DataError, "-100"),
    ],
    ids=["nothing", "both", "labels of texts", "no text", "one token", "uneven", "other labels"],
)
def test_what_cannot_be_trained_on_is_refused(arguments, error, said, tmp_path):
    with pytest.raises(error, match=said):
        trainer(tmp_path).step(**arguments)


def test_a_schedule_needs_its_end_and_keeps_to_it(tmp_path):
    with pytest.raises(ConfigError, match="max_steps"):
        trainer(tmp_path, max_steps=-1)
    made = trainer(tmp_path, max_steps=1)
    made.step(texts=TEXTS)
    with pytest.raises(ConfigError, match="all max_steps=1"):
        made.step(texts=TEXTS)


def test_a_checkpoint_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer_state\.json is missing"):
        trainer(tmp_path).resume(tmp_path / "checkpoint-9")
