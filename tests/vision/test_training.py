"""Training on images does not depend on how a batch was cut, and goes on where it stood."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.testing import assert_close
from transformers import AutoProcessor

from tests.trainers.build import weights, with_plain_descent
from tests.vision.build import build
from tests.vision.models import TOKEN, drawn_image, tiny_processor, tiny_vlm
from tests.vision.rows import asked, preferences, questions, said
from tuneline.rollout.protocol import Request, Sampling
from tuneline.rollout.scripted import ScriptedEngine
from tuneline.rollout.transformers_engine import TransformersEngine
from tuneline.trainers.drawing import encode_images, encode_prompts
from tuneline.trainers.experience import load_experiences, save_experiences


def one_step(method, architecture, folder, per_device, accumulation, **given):
    options = {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "max_grad_norm": 0,
        **given.pop("options", {}),
    }
    trainer = with_plain_descent(build(method, folder, architecture, options=options, **given), learning_rate=0.1)
    start = weights(trainer)
    trainer.train()
    return {name: start[name] - end for name, end in weights(trainer).items()}


def assert_same_step(found, expected):
    largest = max(1.0, *(change.abs().max().item() for change in expected.values()))
    for name, change in expected.items():
        assert_close(found[name], change, atol=1e-5 * largest, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("method", "architecture"),
    [
        ("sft", "qwen"),
        ("dpo", "idefics"),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (("sft", "idefics"), ("dpo", "qwen"), ("kto", "qwen"), ("kto", "idefics"))
        ),
    ],
)
def test_any_split_into_micro_batches_gives_the_same_step(tmp_path, method, architecture):
    whole = one_step(method, architecture, tmp_path, 8, 1)
    assert any(
        "vis" in name and change.abs().max() > 0 for name, change in whole.items()
    )  # the images are learned from
    assert_same_step(one_step(method, architecture, tmp_path, 3, 3, options={"max_steps": 1}), whole)
    assert_same_step(one_step(method, architecture, tmp_path, 1, 8), whole)


@pytest.mark.parametrize("architecture", ["qwen", pytest.param("idefics", marks=pytest.mark.slow)])
def test_any_split_of_a_generation_gives_the_same_step(tmp_path, architecture):
    processor = tiny_processor(architecture)
    prompts = encode_prompts(processor, list(questions(4)))
    script = {
        tuple(ids): [[20 + 7 * k + i, 30 + k, TOKEN["<eos>"]] for k in range(16)] for i, ids in enumerate(prompts)
    }
    given = {"options": {"num_generations": 4, "shuffle_dataset": False, "beta": 0.1}}

    def step(per_device, accumulation):
        engine = ScriptedEngine(script, logprobs=lambda prompt, ids: [-4.0] * len(ids))
        return one_step("grpo", architecture, tmp_path, per_device, accumulation, rollout_engine=engine, **given)

    whole = step(16, 1)
    assert any(change.abs().max() > 0 for change in whole.values())
    assert_same_step(step(4, 4), whole)


SCHEDULE = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sft", {"per_device_train_batch_size": 2}),
        pytest.param(
            "dpo", {"per_device_train_batch_size": 2, "precompute_ref_log_probs": True}, marks=pytest.mark.slow
        ),
        ("dpo", {"per_device_train_batch_size": 2, "sync_ref_model": True, "ref_model_sync_steps": 1}),
        ("grpo", {"num_iterations": 2, "steps_per_generation": 2, "per_device_train_batch_size": 4, "beta": 0.1}),
    ],
    ids=str,
)
def test_a_resumed_run_ends_bit_identical(tmp_path, method, options):
    whole = build(method, tmp_path, options={**SCHEDULE, **options})
    whole.train()
    resumed = build(method, tmp_path, options={**SCHEDULE, **options})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    ends = weights(resumed)
    assert all(torch.equal(ends[name], end) for name, end in weights(whole).items())


def test_experience_that_waits_in_a_checkpoint_keeps_its_images(tmp_path):
    trainer = build("grpo", tmp_path, "idefics", options={"per_device_train_batch_size": 8})
    rows = [trainer.train_dataset[i] for i in (0, 2) for _ in range(4)]
    [batch] = trainer.micro_batches(trainer.collect(rows, 4, (0,)), (0,))
    assert [bool(own) for own in batch.trees.images.by_tree] == [True, False]  # row 2 has no image
    save_experiences([batch], tmp_path / "waiting.safetensors")
    [found] = load_experiences(tmp_path / "waiting.safetensors")
    for own, expected in zip(found.trees.images.by_tree, batch.trees.images.by_tree, strict=True):
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name], expected[name]) for name in own)


def test_the_reference_reads_the_images_too(tmp_path):
    """Of a policy that has not moved it says the same, whether it is a copy, was asked before, or is the base."""
    adapter = LoraConfig(target_modules=r".*language_model.*(q_proj|v_proj)")
    for given in ({}, {"options": {"precompute_ref_log_probs": True}}, {"peft_config": adapter}):
        trainer = build("dpo", tmp_path, **given)
        trainer.train()
        line = trainer.state.log_history[0]
        assert line["rewards/chosen"] == pytest.approx(0, abs=1e-5)
        assert line["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_other_images_are_other_pairs(tmp_path):
    rows = preferences(4)
    turned = rows.map(lambda row: {"images": [image.rotate(180) for image in row["images"]]})
    losses = []
    for data in (rows, turned):
        trainer = build("sft", tmp_path, train_dataset=data.rename_column("chosen", "completion"))
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_folder_holds_model_and_processor_and_both_load_by_name(tmp_path):
    trainer = build("sft", tmp_path, "idefics")
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(processor) is type(tiny_processor("idefics"))
    again = build("sft", tmp_path, "idefics", model=str(tmp_path / "saved"), processing_class=None)
    assert type(again.model) is type(tiny_vlm("idefics"))
    for name, weight in weights(again).items():
        assert_close(weight, weights(trainer)[name])
    again.train()


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain, checkpointed = (
        one_step("sft", "qwen", tmp_path, 4, 1, options={"gradient_checkpointing": on}) for on in (False, True)
    )
    assert_same_step(checkpointed, plain)


def test_an_evaluation_reads_images(tmp_path):
    trainer = build("dpo", tmp_path, eval_dataset=preferences(4))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.parametrize("architecture", ["qwen", pytest.param("idefics", marks=pytest.mark.slow)])
def test_a_model_learns_to_tell_two_images_apart(tmp_path, architecture):
    """The question is the same, so that only the image tells the answer: without it the loss stays at log 2 a letter,
    half of that a token with the end."""
    rows = Dataset.from_list(
        [
            {"images": [drawn_image(k)], "prompt": asked(0), "completion": said(answer)}
            for k, answer in ((1, "a"), (2, "b"))
        ]
    )
    options = {
        "max_steps": 30, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "lr_scheduler_type": "constant",
        "logging_steps": 30,
    }  # fmt: skip
    trainer = build("sft", tmp_path, architecture, train_dataset=rows, options=options)
    trainer.train()
    model, processor = trainer.model.eval(), tiny_processor(architecture)
    requests = [
        Request(ids, (0,), images=images)
        for ids, images in zip(encode_prompts(processor, list(rows)), encode_images(processor, list(rows)), strict=True)
    ]
    drawn = TransformersEngine(model).generate(requests, Sampling(max_new_tokens=1, temperature=0))
    assert [processor.decode(group[0].ids) for group in drawn] == ["a", "b"]
