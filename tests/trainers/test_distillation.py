"""On-policy distillation: divergences in chunks, steps against TRL, cut into micro-batches, resumed, with adapters."""

import pytest
import torch
from peft import LoraConfig
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PrinterCallback

from tests.models import tiny_causal_lm, tiny_config
from tests.trainers.build import weights
from tests.trainers.online import questions
from tests.trainers.paired import by_prompt
from tests.trainers.taught import another_model, build_taught, student
from tests.trainers.test_online_dpo import assert_same_steps, last_log, stepped
from tuneline.divergence import PendingLogits, divergences, pending_logits
from tuneline.errors import ConfigError
from tuneline.losses.distillation import generalized_jsd
from tuneline.models.layouts import prepare_for_trees
from tuneline.rollout.protocol import Request
from tuneline.trees import Branch, Tree, lay_out

TREES = [Tree([3, 4, 5], [Branch([6, 7, 1]), Branch([8, 9, 10, 1])]), Tree([11, 12], [Branch([13, 1])])]


def lines_of(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_divergences_in_chunks_are_those_of_whole_logits(beta, uniform, monkeypatch):
    monkeypatch.setattr(
        "tuneline.divergence.row_chunks", lambda n, weight, tables: (slice(i, min(i + 2, n)) for i in range(0, n, 2))
    )
    model, teacher, trees = student(), another_model(), lay_out(TREES)
    prepare_for_trees(teacher)
    pending = pending_logits(teacher, trees)
    assert pending.hidden.shape == (9, 32)  # targets, hidden: no logits
    scale = torch.ones(9) if uniform else torch.linspace(0, 1, 9)
    token_weights = torch.linspace(0.5, 1, 9)

    plain = divergences(
        model,
        trees,
        PendingLogits(pending.logprobs(slice(None), 1.0)),
        beta=beta,
        temperature=0.8,
        weights=token_weights,
    )  # padded rows and autograd: the model has not been prepared
    (plain.losses * scale).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    assert prepare_for_trees(model)
    found = divergences(model, trees, pending, beta=beta, temperature=0.8, weights=token_weights)
    (found.losses * scale).sum().backward()
    for ours, theirs in zip(found, plain, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert_same_steps({name: p.grad for name, p in model.named_parameters()}, expected)


@pytest.mark.parametrize(("beta", "accumulation"), [(0.0, 2), (0.5, 1), (1.0, 2)])
def test_a_step_is_trls(beta, accumulation, tmp_path):
    trl = pytest.importorskip("trl", reason="parity is measured against TRL")
    options = {
        "beta": beta, "temperature": 0.8, "max_steps": 2, "optim": "sgd", "learning_rate": 0.1,
        "lr_scheduler_type": "constant", "per_device_train_batch_size": 4 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }  # fmt: skip
    ours = build_taught("Distillation", tmp_path, rollout_engine=by_prompt(), **options)
    theirs = build_taught("Distillation", tmp_path, library=trl, **options)
    engine = by_prompt()

    def generate(prompt_ids, *_, **__):
        sampling = ours.sampling
        drawn = engine.generate([Request(ids, [0]) for ids in prompt_ids], sampling)
        return [group[0].ids for group in drawn]

    theirs._generate_single_turn = generate
    theirs.remove_callback(PrinterCallback)
    start = {name: p.detach() for name, p in student().named_parameters()}
    moved = []
    for trainer in (ours, theirs):
        trainer.train()
        moved.append({name: start[name] - end for name, end in weights(trainer).items()})
    assert_same_steps(*moved)
    names = ["loss", "completions/mean_length", "completions/clipped_ratio", "num_tokens"]
    names += ["entropy"] if accumulation == 1 else []  # TRL's is a mean of means over micro-batches
    for own, their in zip(lines_of(ours), lines_of(theirs), strict=True):
        assert {n: own[n] for n in names} == pytest.approx({n: their[n] for n in names}, rel=1e-4, abs=1e-5)
    assert not any(name.startswith("reward") for name in lines_of(ours)[0])


@pytest.mark.slow
def test_the_student_comes_nearer_to_its_teacher(tmp_path):
    options = {"max_steps": 24, "learning_rate": 3e-3, "lr_scheduler_type": "constant", "logging_steps": 6}
    trainer = build_taught("Distillation", tmp_path, **options)
    trainer.train()
    losses = [line["loss"] for line in lines_of(trainer)]
    assert losses[-1] < 0.75 * losses[0]


def test_any_split_into_micro_batches_gives_the_same_step(tmp_path):
    def step(per_device, accumulation):
        trainer = build_taught(
            "Distillation",
            tmp_path,
            rollout_engine=by_prompt(),
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            mask_truncated_completions=True,
            beta=0.3,
        )
        return stepped(trainer)

    whole, log = step(4, 1)
    found, line = step(1, 4)
    assert_same_steps(found, whole)
    for name in ("loss", "entropy", "completions/mean_length"):
        assert line[name] == pytest.approx(log[name], rel=1e-4)


@pytest.mark.slow
def test_a_resumed_run_ends_bit_identical(tmp_path):
    options = {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2,
        "steps_per_generation": 2, "learning_rate": 1e-3, "train_dataset": questions(5),
    }  # fmt: skip
    whole = build_taught("Distillation", tmp_path, **options)
    whole.train()
    resumed = build_taught("Distillation", tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    ends = weights(whole)
    assert all(torch.equal(end, ends[name]) for name, end in weights(resumed).items())


def test_an_adapter_learns_and_the_set_is_evaluated(tmp_path):
    trainer = build_taught(
        "Distillation",
        tmp_path,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        max_steps=2,
        learning_rate=1e-2,
        eval_dataset=questions(2),
        per_device_eval_batch_size=2,
    )
    trainer.train()
    assert last_log(trainer)["loss"] > 0
    assert trainer.reference is None
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_teacher_that_cannot_teach_is_told(tmp_path):
    config = tiny_config("llama", vocab_size=101)
    with pytest.raises(ConfigError, match="97 tokens and the teacher 101"):
        build_taught("Distillation", tmp_path, teacher_model=AutoModelForCausalLM.from_config(config))
    with pytest.raises(ConfigError, match="there is no teacher"):
        build_taught("Distillation", tmp_path, teacher_model=None)
    model = tiny_causal_lm()
    with pytest.raises(ConfigError, match="one object"):
        build_taught("Distillation", tmp_path, model=model, teacher_model=model)
    with pytest.raises(ConfigError, match=r"beta=1\.5"):
        build_taught("Distillation", tmp_path, beta=1.5)


def test_whole_and_padded_rows_are_alike_for_a_teacher():
    teacher, trees = another_model(), lay_out(TREES)
    padded = pending_logits(teacher, trees)
    assert padded.weight is None
    prepare_for_trees(teacher)
    pending = pending_logits(teacher, trees)
    both = [one.logprobs(slice(None), 0.7) for one in (padded, pending)]
    assert_close(*both, rtol=1e-5, atol=1e-5)
    assert_close(generalized_jsd(*both, 0.5), torch.zeros(9), atol=1e-6, rtol=0)
