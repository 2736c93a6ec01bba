"""A real vLLM server: what it draws, and that it draws from the policy after every update of the weights."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.vllm.environment import SMALL, arguments, require_vllm
from tests.vllm.policies import perturb, tiny_policy
from tuneline.errors import RolloutError
from tuneline.logprobs import token_logprobs
from tuneline.models.layouts import prepare_for_trees
from tuneline.rollout.protocol import Request, Sampling
from tuneline.rollout.vllm_config import make_vllm_engine, write_blueprint
from tuneline.rollout.vllm_launch import server_options, start_server
from tuneline.rollout.vllm_server import VLLMServer
from tuneline.trees import Branch, Tree, lay_out

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOLERANCE = 1e-4  # of a log-probability in float32; 1e-5 is usual
REQUESTS = [Request([5, 6, 7, 8, i], [2**63 - 1 - i, i]) for i in range(10, 18)]
SAMPLING = Sampling(24, temperature=0.8, stop_token_ids=(2,))


@pytest.fixture(scope="module", autouse=True)
def _small_servers():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A process for all tests that leave it as it was: it takes weights and adapters, and starts without any."""
    folder = tmp_path_factory.mktemp("server")
    model, tokenizer = tiny_policy()
    options = [*server_options(dtype="float32", lora_rank=8, enforce_eager=True), "--load-format", "dummy"]
    process = start_server(
        write_blueprint(model, tokenizer, folder / "model"),
        python=require_vllm(),
        options=options,
        log_file=folder / "server.log",
    )
    yield process
    process.close()


@pytest.fixture
def engine(server):
    engine = VLLMServer(server.base_url, request_timeout=120)
    yield engine
    engine.close()


def trainer_logprobs(model, requests, groups, temperature):
    """What the trainer makes of each completion: one list of tensors (tokens,)."""
    prepare_for_trees(model)
    trees = lay_out(
        [
            Tree(request.prompt_ids, [Branch(completion.ids) for completion in group])
            for request, group in zip(requests, groups, strict=True)
        ]
    )
    with torch.no_grad():
        logprobs = token_logprobs(model, trees, temperature=temperature).logprobs
    return logprobs.split([len(completion.ids) for group in groups for completion in group])


def worst_difference(model, groups, requests=REQUESTS, temperature=SAMPLING.temperature):
    theirs = [torch.tensor(completion.logprobs) for group in groups for completion in group]
    ours = trainer_logprobs(model, requests, groups, temperature)
    return max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True))


def test_logprobs_are_the_trainers_and_the_next_weights_logprobs_after_an_update(engine):
    model, _ = tiny_policy()
    engine.sync_weights(model)
    first = engine.generate(REQUESTS, SAMPLING)
    assert worst_difference(model, first) < TOLERANCE
    perturb(model, 0.1, seed=1)
    assert worst_difference(model, first) > 0.1
    engine.sync_weights(model)
    second = engine.generate(REQUESTS, SAMPLING)
    assert worst_difference(model, second) < TOLERANCE
    assert second != first


def test_untied_heads_are_updated_too(tmp_path):
    model, tokenizer = tiny_policy(tie_word_embeddings=False)
    folder = write_blueprint(model, tokenizer, tmp_path / "model")
    options = [*server_options(dtype="float32", enforce_eager=True), "--load-format", "dummy"]
    process = start_server(folder, python=require_vllm(), options=options, log_file=tmp_path / "server.log")
    try:
        engine = VLLMServer(process.base_url, process=process)
        with pytest.raises(RolloutError, match="without weights"):
            engine.generate(REQUESTS, SAMPLING)
        for seed in (1, 2):
            perturb(model, 0.1, seed)
            engine.sync_weights(model)
            assert worst_difference(model, engine.generate(REQUESTS, SAMPLING)) < TOLERANCE
    finally:
        process.close()


def test_completions_come_from_their_seeds_whatever_else_is_drawn(engine):
    model, _ = tiny_policy()
    engine.sync_weights(model)
    together = engine.generate(REQUESTS, SAMPLING)
    alone = [engine.generate([request], SAMPLING)[0] for request in REQUESTS]
    assert [[c.ids for c in group] for group in alone] == [[c.ids for c in group] for group in together]
    assert len({tuple(c.ids) for group in together for c in group}) > len(REQUESTS)


def test_a_completion_ends_at_its_stop_token_or_its_limit(engine):
    model, _ = tiny_policy()
    engine.sync_weights(model)
    stops = tuple(range(2, 40))
    [long, short] = engine.generate(
        [Request([5, 6, 7], range(16)), Request([5, 6, 7], range(16), max_new_tokens=3)],
        Sampling(24, stop_token_ids=stops),
    )
    for completion in [*long, *short]:
        assert completion.is_finished == (completion.ids[-1] in stops)
        assert not set(completion.ids[:-1]) & set(stops)
    assert any(c.is_finished for c in long)
    assert all(len(c.ids) == 24 for c in long if not c.is_finished)
    assert all(len(c.ids) == 3 for c in short if not c.is_finished)
    assert [c.ids[:3] for c in long] == [c.ids for c in short]  # the limit changes no draw


@pytest.mark.parametrize("cut", [{"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_p": 0.9, "top_k": 20}])
def test_a_cut_support_comes_with_the_completion_and_normalises_its_logprobs(engine, cut):
    model, _ = tiny_policy()
    engine.sync_weights(model)
    sampling = Sampling(12, temperature=0.8, **cut)
    groups = engine.generate(REQUESTS, sampling)
    for request, group in zip(REQUESTS, groups, strict=True):
        for completion in group:
            ids = torch.tensor([[*request.prompt_ids, *completion.ids]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(request.prompt_ids) - 1 : -1] / 0.8
            for position, support in enumerate(completion.support):
                drawn = completion.ids[position]
                kept = logits[position, support].log_softmax(-1)[support.index(drawn)]
                assert abs(float(kept) - completion.logprobs[position]) < TOLERANCE
                if "top_k" in cut:
                    assert len(support) <= cut["top_k"]
    assert engine.num_unknown_supports == 0


def test_a_support_wider_than_asked_for_is_left_out_and_counted(server):
    model, _ = tiny_policy()
    engine = VLLMServer(server.base_url, max_support=2)
    engine.sync_weights(model)
    groups = engine.generate(REQUESTS, Sampling(12, top_p=0.99))
    assert all(completion.support is None for group in groups for completion in group)
    assert engine.num_unknown_supports == 16
    engine.close()


def test_completions_match_a_pattern(server):
    model, tokenizer = tiny_policy()
    engine = VLLMServer(server.base_url, structured_outputs_regex="[a-c]{3,5}")
    engine.sync_weights(model)
    for group in engine.generate(REQUESTS, Sampling(24, stop_token_ids=(tokenizer.eos_token_id,))):
        for completion in group:
            text = tokenizer.decode(completion.ids, skip_special_tokens=True)
            assert 3 <= len(text) <= 5
            assert set(text) <= set("abc")
            assert completion.is_finished
    engine.close()


def test_repetition_penalty_counts_in_the_logprobs(engine):
    model, _ = tiny_policy()
    engine.sync_weights(model)
    [[completion]] = engine.generate([Request([5, 6, 7], [3])], Sampling(1, repetition_penalty=1.7))
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    seen = torch.tensor([5, 6, 7])
    logits[seen] = torch.where(logits[seen] > 0, logits[seen] / 1.7, logits[seen] * 1.7)
    assert abs(float(logits.log_softmax(-1)[completion.ids[0]]) - completion.logprobs[0]) < TOLERANCE


def adapted_policy(seed=3, **settings):
    model, _ = tiny_policy()
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, **settings)).eval()
    perturb(peft, 0.1, seed)
    return peft


def test_an_adapter_alone_is_handed_over_after_its_base(engine, caplog):
    model = adapted_policy()
    with caplog.at_level("DEBUG", logger="tuneline.rollout.vllm_server"):
        for seed in (1, 2):
            engine.sync_weights(model)
            groups = engine.generate(REQUESTS, SAMPLING)
            assert worst_difference(model, groups) < TOLERANCE
            perturb(model, 0.1, seed)
            assert worst_difference(model, groups) > 0.05
        engine.sync_weights(model)
    sent = [record.getMessage() for record in caplog.records if "tensors" in record.getMessage()]
    assert [" and an adapter" in message for message in sent] == [True] * 3
    assert ["took 0 tensors" in message for message in sent] == [False, True, True]
    assert worst_difference(model, engine.generate(REQUESTS, SAMPLING)) < TOLERANCE


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"modules_to_save": ["norm"]}, {"bias": "lora_only"}])
def test_adapters_vllm_cannot_run_are_merged_into_a_copy(engine, settings):
    model = adapted_policy(**settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine.sync_weights(model)
    assert worst_difference(model, engine.generate(REQUESTS, SAMPLING)) < TOLERANCE
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_whole_weights_after_an_adapter_replace_both(engine):
    engine.sync_weights(adapted_policy())
    model, _ = tiny_policy(seed=5)
    engine.sync_weights(model)
    assert worst_difference(model, engine.generate(REQUESTS, SAMPLING)) < TOLERANCE


def test_after_a_failed_update_nothing_is_drawn_until_one_succeeds(engine):
    model, _ = tiny_policy()
    engine.sync_weights(model)
    other, _ = tiny_policy(hidden_size=128)
    with pytest.raises(RolloutError, match=r"http://127\.0\.0\.1:\d+: POST /update_weights: status 500"):
        engine.sync_weights(other)
    with pytest.raises(RolloutError, match="an update failed"):
        engine.generate(REQUESTS, SAMPLING)
    engine.sync_weights(model)
    assert worst_difference(model, engine.generate(REQUESTS, SAMPLING)) < TOLERANCE


def test_a_server_of_another_model_or_too_short_is_refused(engine):
    other, _ = tiny_policy(num_hidden_layers=3)
    with pytest.raises(RolloutError, match="number of layers 2, and the policy has 3"):
        engine.check(other)
    model, _ = tiny_policy()
    engine.sync_weights(model)
    engine.check(model, min_length=256)
    with pytest.raises(RolloutError, match="256 tokens there, and 257 are wanted"):
        engine.check(model, min_length=257)
    with pytest.raises(RolloutError, match="may take 257 tokens"):
        engine.generate([Request(list(range(10, 130)), [1])], Sampling(137))


def test_a_server_on_the_same_machine_that_sees_another_folder_is_refused(server, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    engine = VLLMServer(server.base_url, weights_folder=str(folder))
    engine._folder.probe = lambda: folder / "never-written"  # as if another machine had another folder there
    with pytest.raises(RolloutError, match=r"/init_weight_transfer_engine: .*cannot see"):
        engine._check_server()


def test_a_server_started_from_settings_serves_and_its_death_is_named(tmp_path):
    model, tokenizer = tiny_policy()
    settings = arguments(
        vllm_server_start=True,
        vllm_server_python=require_vllm(),
        vllm_max_model_length=128,
        output_dir=str(tmp_path),
    )
    engine = make_vllm_engine(settings, model, tokenizer, min_length=100)
    try:
        assert engine.facts.max_length == 128
        engine.sync_weights(model)
        assert worst_difference(model, engine.generate(REQUESTS, SAMPLING)) < TOLERANCE
        os.kill(engine._process.pid, signal.SIGKILL)
        with pytest.raises(RolloutError) as caught:
            engine.generate(REQUESTS, SAMPLING)
        message = str(caught.value)
        assert engine.client.base_url in message
        assert "/tuneline/generate" in message
        assert "exit code -9" in message
        assert str(tmp_path / "vllm/server.log") in message
    finally:
        engine.close()


def test_a_server_that_cannot_start_says_why(tmp_path):
    model, tokenizer = tiny_policy()
    folder = write_blueprint(model, tokenizer, tmp_path / "model")
    with pytest.raises(RolloutError, match=r"(?s)has ended \(exit code .*no-such-option"):
        start_server(folder, python=require_vllm(), options=["--no-such-option"], log_file=tmp_path / "log")


PARENT = """
import sys, time
from pathlib import Path
from tuneline.rollout.vllm_launch import server_options, start_server
options = [*server_options(dtype="float32", enforce_eager=True), "--load-format", "dummy"]
server = start_server(sys.argv[1], python=sys.argv[2], options=options, log_file=sys.argv[3])
Path(sys.argv[4]).write_text(str(server.pid))
time.sleep(600)
"""


def session_of(pid):
    """Processes of the session that a process leads."""
    found = subprocess.run(["ps", "-s", str(pid), "-o", "pid=,stat="], capture_output=True, text=True).stdout.split(
        "\n"
    )
    return [line for line in found if line.strip() and "Z" not in line.split()[1]]


def test_a_server_ends_with_the_process_that_started_it_however_that_ends(tmp_path):
    model, tokenizer = tiny_policy()
    folder, told = write_blueprint(model, tokenizer, tmp_path / "model"), tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, folder, require_vllm(), tmp_path / "log", told])
    try:
        deadline = time.monotonic() + 240
        while not told.exists() and time.monotonic() < deadline:
            assert parent.poll() is None
            time.sleep(0.5)
        pid = int(told.read_text())
        assert len(session_of(pid)) >= 2  # the server, its engine, its workers
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 60
    while session_of(pid) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not session_of(pid)
