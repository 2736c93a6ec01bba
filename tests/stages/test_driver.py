"""Stages as processes, with DVC: killed at any point, run twice at once, forced, on two processes. A minute each."""

import json
import shutil
import signal
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


ONLINE_REPORT = ("curve.csv", "metrics.json", "rollouts/rollouts.parquet")


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("point", ["checkpoint-2", "trained"])
def test_a_stage_that_was_killed_goes_on_and_ends_with_the_same_weights(prepared, checkout_after_sft, point):
    killed = prepared.repro("sft", check=False, TUNELINE_CRASH_AT=point)
    assert killed.returncode != 0
    resumed = prepared.repro("sft").stdout
    assert f"goes on from checkpoint-{2 if point == 'checkpoint-2' else 6}" in resumed
    assert prepared.hash_of("models/sft") == checkout_after_sft.hash_of("models/sft")
    for name in ("metrics.json", "curve.csv"):
        mine, whole = (c.root / "reports" / "sft" / name for c in (prepared, checkout_after_sft))
        assert mine.read_text() == whole.read_text()


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_an_online_stage_that_was_killed_draws_the_same_rollouts_again(trained, stage):
    if stage == "ppo":
        trained.repro("reward")
    trained.repro(stage, TUNELINE_CRASH_AT="")
    whole = {name: (trained.root / "reports" / stage / name).read_bytes() for name in ONLINE_REPORT}
    model = trained.hash_of(f"models/{stage}")
    for folder in (trained.root / ".work" / stage, trained.root / ".dvc" / "cache"):
        shutil.rmtree(folder)
    assert trained.repro(stage, check=False, TUNELINE_CRASH_AT="checkpoint-4").returncode != 0
    (trained.work(stage) / "checkpoint-4" / "COMPLETE").unlink()  # so rollouts of steps 3 and 4 lie past the checkpoint
    assert "goes on from checkpoint-2" in trained.repro(stage).stdout
    assert trained.hash_of(f"models/{stage}") == model
    for name, content in whole.items():
        assert (trained.root / "reports" / stage / name).read_bytes() == content, name


def test_an_incomplete_checkpoint_is_deleted(prepared, checkout_after_sft):
    prepared.repro("sft", check=False, TUNELINE_CRASH_AT="checkpoint-4")
    (prepared.work("sft") / "checkpoint-4" / "COMPLETE").unlink()
    assert "goes on from checkpoint-2" in prepared.repro("sft").stdout
    assert prepared.hash_of("models/sft") == checkout_after_sft.hash_of("models/sft")


@pytest.mark.parametrize("point", ["done", "outputs", "published", "tracked"])
def test_a_driver_that_was_killed_after_training_does_not_train_again(prepared, checkout_after_sft, point):
    assert prepared.repro("sft", check=False, TUNELINE_CRASH_AT=point).returncode != 0
    prepared.repro("sft")
    assert prepared.num_launches("sft") == 1
    assert prepared.hash_of("models/sft") == checkout_after_sft.hash_of("models/sft")


def test_a_forced_stage_trains_again(trained):
    before = trained.hash_of("models/sft")
    trained.run("dvc", "repro", "--force", "-s", "sft")
    assert trained.num_launches("sft") == 1  # the work folder was made anew
    assert len(list(trained.work("sft").parent.glob("*/FORCED"))) == 1
    assert trained.hash_of("models/sft") == before


def test_an_output_that_was_written_to_is_not_published_again(trained):
    before = trained.hash_of("models/sft")
    with (trained.work("sft") / "final" / "model.safetensors").open("r+b") as file:
        file.write(b"\xff" * 16)  # as through its link in models/sft
    shutil.rmtree(trained.root / "models" / "sft")
    shutil.rmtree(trained.root / ".dvc" / "cache")
    trained.run("stages.run", "sft")
    assert weights(trained.root / "models" / "sft")
    trained.run("dvc", "commit", "-f", "sft")
    assert trained.hash_of("models/sft") == before


def test_two_drivers_at_once_train_once(prepared):
    drivers = [prepared.start("stages.run", "sft") for _ in range(2)]
    outputs = [driver.communicate(timeout=200)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    assert prepared.num_launches("sft") == 1
    assert sum("waiting until it has ended" in output for output in outputs) == 1


@pytest.mark.parametrize("level", [0, 1, 2])
def test_nothing_outlives_a_killed_process(prepared, level):
    """0 is dvc, 1 the driver, 2 the launcher."""
    dvc = prepared.start("dvc", "repro", "-s", "sft")
    deadline = time.monotonic() + 120
    while not list(prepared.root.glob(".work/sft/*/metrics.jsonl")):
        assert time.monotonic() < deadline
        assert dvc.poll() is None
        time.sleep(0.05)
    tree = [psutil.Process(dvc.pid), *psutil.Process(dvc.pid).children(recursive=True)]
    modules = ("dvc", "stages.run", "accelerate.commands.launch")
    victim = next(process for process in tree if modules[level] in process.cmdline())
    victim.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(tree, timeout=10)
    dvc.communicate()
    assert not alive


def test_two_processes_match_one(prepared, checkout_after_sft):
    """The same batches of the same rows, shared out: only the rounding of sums differs."""
    prepared.configure("sft.launch.num_processes=2", "sft.training.per_device_train_batch_size=2")
    prepared.repro("sft")
    two, one = (weights(c.root / "models" / "sft") for c in (prepared, checkout_after_sft))
    assert two.keys() == one.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-5, rtol=1e-4)
    lines = (prepared.work("sft") / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "train/loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]  # rank 0 alone writes


def test_lora_leaves_a_merged_model_and_its_adapter(prepared):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prepared.configure("sft.peft={r: 4, target_modules: [q_proj, v_proj]}")
    prepared.repro("sft")
    folder = prepared.root / "models" / "sft"
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    base, merged = weights(prepared.root / "models" / "base"), weights(folder)
    assert base.keys() == merged.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {f"model.layers.0.self_attn.{part}_proj.weight" for part in "qv"}
    AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_an_error_that_the_user_has_to_mend_ends_with_exit_code_2_and_one_message(prepared):
    data = prepared.root / "data" / "prepared" / "sft" / "train.parquet"
    data.unlink()
    done = prepared.run("stages.run", "sft", check=False)
    assert done.returncode == 2
    assert "error: data/prepared/sft/train.parquet is missing" in done.stdout
    assert "Traceback" not in done.stdout
