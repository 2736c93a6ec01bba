"""Callbacks passed to a trainer: the averaged model, the panel, the log of completions, the moved reference."""

import io
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, PeftModel
from rich.console import Console
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GenerationConfig, PrinterCallback, ProgressCallback

from tests.models import tiny_causal_lm
from tests.trainers.build import QUIET, build, weights
from tests.trainers.online import build_online, questions
from tests.trainers.rows import character_tokenizer, preferences
from tuneline import (
    BEMACallback,
    DPOConfig,
    DPOTrainer,
    LogCompletionsCallback,
    RichProgressCallback,
    SyncRefModelCallback,
)
from tuneline.errors import ConfigError

SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-2}


def drive(callback, model, num_steps, folder, move):
    """A run as transformers tells callbacks of it; `move(step)` changes the weights."""
    args, state = SimpleNamespace(output_dir=str(folder)), SimpleNamespace(global_step=0, is_world_process_zero=True)
    callback.on_train_begin(args, state, None, model=model)
    for step in range(1, num_steps + 1):
        move(step)
        state.global_step = step
        callback.on_step_end(args, state, None, model=model)
        yield step


@pytest.mark.parametrize(("after", "expected"), [(0, [2, 4, 6, 8]), (3, [5, 7, 9])])
def test_the_average_is_updated_every_so_often_after_a_while(after, expected, tmp_path):
    model = torch.nn.Linear(2, 1, bias=False)

    def move(step):
        model.weight.data.add_(1.0)

    callback = BEMACallback(update_freq=2, update_after=after)
    updated, before = [], None
    for step in drive(callback, model, 9, tmp_path, move):
        now = callback.average["weight"].clone()
        if before is not None and step != after and not torch.equal(now, before):
            updated.append(step)
        before = now
    assert updated == expected


def test_the_average_and_its_correction_by_hand(tmp_path):
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)

    def move(step):
        model.weight.data.fill_(1.0 + step)

    callback = BEMACallback(update_freq=1, ema_power=0.5, bias_power=0.25, lag=15, multiplier=1.0)
    assert next(drive(callback, model, 1, tmp_path, move)) == 1
    # 16^-0.5 = 1/4 of the weight 2, 3/4 of the start 1; and 16^-0.25 = 1/2 of how far it came
    assert_close(callback.average["weight"], torch.tensor([[1.25]]))
    assert_close(callback.corrected["weight"], torch.tensor([[1.75]]))


@pytest.mark.filterwarnings("ignore")
def test_the_average_is_the_peers(tmp_path):
    trl = pytest.importorskip("trl")
    options = dict(update_freq=2, ema_power=0.4, bias_power=0.3, lag=3, update_after=1, multiplier=0.5)
    ours, theirs = BEMACallback(**options), trl.BEMACallback(**options)
    model = tiny_causal_lm("llama")
    generator = torch.Generator().manual_seed(3)

    def move(step):
        for weight in model.parameters():
            weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)

    args, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=0, is_world_process_zero=True)
    theirs.on_train_begin(args, state, None, model=model)
    for step in drive(ours, model, 7, tmp_path, move):
        state.global_step = step
        theirs.on_step_end(args, state, None, model=model)
    for name, weight in theirs.running_model.named_parameters():
        assert_close(ours.corrected[name], weight.data)


def test_an_average_model_is_written_and_training_is_left_as_it_is(tmp_path):
    options = {"max_steps": 4, "learning_rate": 1e-2}
    plain = build("sft", tmp_path / "plain", options=options)
    plain.train()
    callback = BEMACallback(update_freq=2)
    trainer = build("sft", tmp_path / "averaged", options=options, callbacks=[callback])
    trainer.train()
    for name, weight in weights(plain).items():
        assert torch.equal(weight, weights(trainer)[name]), name
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "averaged" / "bema")
    moved = 0
    for name, weight in written.named_parameters():
        assert_close(weight.data, callback.corrected[name])
        moved += not torch.equal(weight.data, weights(trainer)[name])
    assert moved > 10
    assert (tmp_path / "averaged" / "bema" / "tokenizer.json").is_file()


def test_a_resumed_run_ends_with_the_same_average(tmp_path):
    whole, resumed = BEMACallback(update_freq=2), BEMACallback(update_freq=2)
    build("sft", tmp_path, options=SAVING, callbacks=[whole]).train()
    trainer = build("sft", tmp_path, options=SAVING, callbacks=[resumed])
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for part in ("start", "average", "corrected"):
        for name, tensor in getattr(whole, part).items():
            assert torch.equal(tensor, getattr(resumed, part)[name]), (part, name)
    (tmp_path / "checkpoint-3" / "bema.safetensors").unlink()
    with pytest.raises(ConfigError, match="averages are lost"):
        build("sft", tmp_path, options=SAVING, callbacks=[BEMACallback(update_freq=2)]).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-3")
        )


def test_of_an_adapter_the_adapter_is_averaged(tmp_path):
    callback = BEMACallback(update_freq=1)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    build(
        "sft", tmp_path, options={"max_steps": 2, "learning_rate": 1e-2}, peft_config=config, callbacks=[callback]
    ).train()
    assert all("lora_" in name for name in callback.average)
    written = PeftModel.from_pretrained(tiny_causal_lm(), tmp_path / "bema")
    for name, tensor in callback.corrected.items():
        assert_close(written.get_parameter(name).data, tensor)


@pytest.mark.parametrize("options", [{"update_freq": 0}, {"lag": -1}, {"lag": 0, "multiplier": 0.0}])
def test_averages_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError, match=r"update_freq|lag"):
        BEMACallback(**options)


def test_the_panel_shows_progress_and_metrics_and_stands_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")  # a dumb one shows nothing but the end
    out = io.StringIO()
    callback = RichProgressCallback(Console(file=out, force_terminal=True, width=100))
    trainer = build(
        "dpo",
        tmp_path,
        options={"max_steps": 2, "disable_tqdm": False, "eval_strategy": "steps", "eval_steps": 2},
        eval_dataset=preferences(4),
        callbacks=[callback],
    )
    kinds = [type(one) for one in trainer.callback_handler.callbacks]
    assert ProgressCallback not in kinds
    assert PrinterCallback not in kinds
    trainer.train()
    for shown in ("training", "2/2", "evaluation", "rewards", "chosen", "learning_rate"):
        assert shown in out.getvalue(), shown
    out.truncate(0)
    trainer.evaluate()  # without training
    assert "evaluation" in out.getvalue()


def test_completions_are_logged_every_few_steps(tmp_path, capsys):
    trainer = build_online("grpo", tmp_path, max_steps=4, eval_dataset=questions(4), learning_rate=1e-2)
    config = GenerationConfig(max_new_tokens=5, do_sample=True)
    trainer.add_callback(LogCompletionsCallback(trainer, config, num_prompts=3, freq=2))
    trainer.train()
    files = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert files == ["evaluation_00002.parquet", "evaluation_00004.parquet"]
    table = pq.read_table(tmp_path / "completions" / files[-1]).to_pydict()
    assert table["prompt"] == questions(4)["prompt"][:3]
    assert table["step"] == [4, 4, 4]
    assert all(len(one.split()) <= 5 for one in table["completion"])
    assert "what is 2 or so or so?" in capsys.readouterr().out


def test_prompts_that_a_trainer_keeps_as_tokens_are_answered_too(tmp_path):
    trainer = build("dpo", tmp_path, options={"max_steps": 1}, eval_dataset=preferences(3))
    trainer.add_callback(LogCompletionsCallback(trainer, GenerationConfig(max_new_tokens=4), freq=1))
    trainer.train()
    table = pq.read_table(tmp_path / "completions" / "evaluation_00001.parquet").to_pydict()
    assert [prompt.replace(" ", "") for prompt in table["prompt"]] == [
        prompt.replace(" ", "") for prompt in preferences(3)["prompt"]
    ]
    assert all(table["completion"])


def test_a_log_of_completions_does_not_change_the_run(tmp_path):
    runs = []
    for is_logged in (False, True):
        trainer = build_online("grpo", tmp_path / str(is_logged), max_steps=2, eval_dataset=questions(4))
        if is_logged:
            trainer.add_callback(LogCompletionsCallback(trainer, num_prompts=2, freq=1))
        trainer.train()
        runs.append(weights(trainer))
    assert all(torch.equal(weight, runs[1][name]) for name, weight in runs[0].items())


def test_a_log_of_completions_needs_prompts_and_a_frequency(tmp_path):
    with pytest.raises(ConfigError, match="pass prompts"):
        LogCompletionsCallback(build("sft", tmp_path), freq=1)
    with pytest.raises(ConfigError, match="needs freq"):
        LogCompletionsCallback(build_online("grpo", tmp_path), prompts=["a"])
    with pytest.raises(ConfigError, match="freq=0"):
        LogCompletionsCallback(build_online("grpo", tmp_path), prompts=["a"], freq=0)


def test_the_reference_is_moved_by_the_trainers_options(tmp_path):
    reference = tiny_causal_lm(seed=1)
    config = DPOConfig(
        output_dir=str(tmp_path),
        **{**QUIET, "max_steps": 2, "learning_rate": 1e-2, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.25},
    )
    before = {name: weight.detach().clone() for name, weight in reference.named_parameters()}
    trainer = DPOTrainer(
        tiny_causal_lm(),
        reference,
        config,
        train_dataset=preferences(4),
        processing_class=character_tokenizer(),
        callbacks=[SyncRefModelCallback(reference, None)],
    )
    trainer.train()
    for name, weight in weights(trainer).items():
        assert_close(reference.get_parameter(name).data, 0.75 * before[name] + 0.25 * weight)


def test_a_reference_that_cannot_be_moved_is_refused(tmp_path):
    callback = SyncRefModelCallback(tiny_causal_lm(), None)
    with pytest.raises(ConfigError, match="holds no reference"):
        build("sft", tmp_path, callbacks=[callback]).train()
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match="theirs differ"):
        build("dpo", tmp_path, callbacks=[callback], peft_config=config).train()


def test_what_the_callbacks_take_is_the_peers():
    trl = pytest.importorskip("trl")
    import inspect

    for own in (BEMACallback, LogCompletionsCallback, RichProgressCallback, SyncRefModelCallback):
        theirs = inspect.signature(getattr(trl, own.__name__).__init__).parameters
        ours = inspect.signature(own.__init__).parameters
        assert {name: one.default for name, one in theirs.items()}.items() <= {
            name: one.default for name, one in ours.items()
        }.items(), own
