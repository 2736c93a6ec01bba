"""Generalised knowledge distillation: whose completions are learned from, steps against TRL, resumed."""

import pytest
import torch
from datasets import Dataset
from transformers import PrinterCallback

from tests.trainers.build import weights
from tests.trainers.online import questions
from tests.trainers.paired import by_prompt
from tests.trainers.rows import character_tokenizer, demonstrations
from tests.trainers.taught import build_taught, student
from tests.trainers.test_online_dpo import assert_same_steps, last_log, stepped
from tuneline.errors import ConfigError, DataError

MESSAGES = Dataset.from_list(
    [
        {
            "messages": [
                {"role": "user", "content": f"what is {i}?" + " now" * (i % 3)},
                {"role": "assistant", "content": f"it is {i * i}" + " yes" * (i % 2)},
            ]
        }
        for i in range(4)
    ]
)


def chatting_tokenizer():
    tokenizer = character_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}a {% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_steps_on_the_data_set_are_trls(beta, tmp_path, monkeypatch):
    trl = pytest.importorskip("trl.experimental.gkd", reason="parity is measured against TRL")
    options = {
        "beta": beta, "lmbda": 0.0, "max_steps": 2, "optim": "sgd", "learning_rate": 0.1,
        "lr_scheduler_type": "constant", "train_dataset": MESSAGES, "max_length": 64,
        "processing_class": chatting_tokenizer(),
    }  # fmt: skip
    ours = build_taught("GKD", tmp_path, **options)
    theirs = build_taught("GKD", tmp_path, library=trl, **options)
    theirs.remove_callback(PrinterCallback)
    start = {name: p.detach() for name, p in student().named_parameters()}
    moved = []
    for trainer in (ours, theirs):
        trainer.train()
        moved.append({name: start[name] - end for name, end in weights(trainer).items()})
    assert_same_steps(*moved)
    assert last_log(ours)["loss"] == pytest.approx(last_log(theirs)["loss"], abs=1e-5)
    assert last_log(ours)["completions/on_policy_ratio"] == 0


def test_completions_are_the_students_the_data_sets_or_the_teachers(tmp_path):
    def completions(**options):
        trainer = build_taught("GKD", tmp_path, train_dataset=demonstrations(8), **options)
        seen = []
        trainer.add_rollout_listener(
            lambda step, table: seen.append(dict(zip(table["prompt"], table["completion"], strict=True)))
        )
        trainer.train()
        return seen[0], last_log(trainer)["completions/on_policy_ratio"]

    given = dict(zip(*(demonstrations(8)[name] for name in ("prompt", "completion")), strict=True))
    settings = {"per_device_train_batch_size": 8}
    data, ratio = completions(lmbda=0.0, **settings)
    assert (data, ratio) == (given, 0)
    mine, ratio = completions(lmbda=1.0, **settings)
    assert ratio == 1
    assert not set(mine.items()) & set(given.items())
    teachers, ratio = completions(lmbda=0.0, seq_kd=True, **settings)
    assert ratio == 0
    assert not set(teachers.items()) & (set(mine.items()) | set(given.items()))
    mixed, ratio = completions(lmbda=0.5, **settings)
    from_data = set(mixed.items()) & set(given.items())
    assert len(from_data) == 8 - 8 * ratio
    assert set(mixed.items()) - from_data <= set(mine.items())  # the same draws, whoever wrote the others
    assert 0 < ratio < 1


def test_any_split_into_micro_batches_gives_the_same_step(tmp_path):
    def step(per_device, accumulation):
        trainer = build_taught(
            "GKD",
            tmp_path,
            rollout_engine=by_prompt(),
            train_dataset=questions(4).add_column("completion", [" yes", " no", " perhaps so", " 3"]),
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            lmbda=0.7,
        )
        return stepped(trainer)

    whole, log = step(4, 1)
    found, line = step(2, 2)
    assert 0 < log["completions/on_policy_ratio"] < 1
    assert_same_steps(found, whole)
    assert line["loss"] == pytest.approx(log["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_resumed_run_ends_bit_identical(tmp_path):
    options = {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2,
        "learning_rate": 1e-3, "train_dataset": MESSAGES, "processing_class": chatting_tokenizer(),
    }  # fmt: skip
    whole = build_taught("GKD", tmp_path, **options)
    whole.train()
    resumed = build_taught("GKD", tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    ends = weights(whole)
    assert all(torch.equal(end, ends[name]) for name, end in weights(resumed).items())


def test_what_cannot_work_is_told(tmp_path):
    with pytest.raises(DataError, match="no 'completion' to learn from"):
        build_taught("GKD", tmp_path, lmbda=0.5)
    build_taught("GKD", tmp_path, lmbda=1.0)
    with pytest.raises(ConfigError, match=r"lmbda=1\.5"):
        build_taught("GKD", tmp_path, lmbda=1.5)
    with pytest.raises(DataError, match="do not end with an answer"):
        build_taught("GKD", tmp_path, train_dataset=Dataset.from_list([{"messages": MESSAGES[0]["messages"][:1]}]))
    trainer = build_taught("GKD", tmp_path, train_dataset=demonstrations(4), lmbda=0.0, max_length=38)
    trainer.train()
    assert last_log(trainer)["completions/clipped_ratio"] > 0  # cut where they do not fit
