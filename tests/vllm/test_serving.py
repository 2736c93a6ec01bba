"""`tuneline vllm-serve`: its flags, and a server of a teacher whose log-probabilities are the model's own."""

import signal
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from tests.ports import free_port
from tests.vllm.environment import SMALL, require_vllm
from tests.vllm.policies import tiny_policy
from tuneline.cli.main import main
from tuneline.cli.parser_models import make_serve_parser
from tuneline.cli.serving import serve_options
from tuneline.rollout.vllm_client import VLLMClient
from tuneline.trainers.server_teacher import ServerTeacher
from tuneline.trees import Branch, Tree, lay_out


def options_of(*arguments):
    settings, rest = make_serve_parser().parse_known_args(arguments)
    return [*serve_options(settings), *rest]


def test_trls_flags_and_vllms_own_reach_the_server():
    options = options_of(
        "--model", "m", "--tensor_parallel_size", "2", "--max-model-len", "128", "--enable_prefix_caching", "false",
        "--enforce_eager", "--max_lora_rank", "9", "--swap-space", "3",
    )  # fmt: skip
    words = " ".join(options)
    for expected in (
        "--host 127.0.0.1 --port 8000", "--tensor-parallel-size 2", "--max-model-len 128", "--no-enable-prefix-caching",
        "--enforce-eager", "--max-lora-rank 16", "--swap-space 3", "--logprobs-mode processed_logprobs",
    ):  # fmt: skip
        assert expected in words
    assert "--trust-remote-code" not in words


def test_a_file_of_settings_with_a_wrong_name_is_refused(tmp_path, capsys):
    file = tmp_path / "serve.yaml"
    file.write_text("model: m\ntensor_paralel_size: 2\n")
    assert main(["vllm-serve", "--config", str(file)]) == 2
    assert "tensor_paralel_size: not known" in capsys.readouterr().err


def test_a_missing_interpreter_is_named(tmp_path, capsys):
    assert main(["vllm-serve", "--model", "m", "--python", str(tmp_path / "python")]) == 2
    assert f"cannot start a vLLM server with {tmp_path}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_teacher_that_is_served_says_what_it_says_at_hand(tmp_path, monkeypatch):
    python, port = require_vllm(), free_port()
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    model, tokenizer = tiny_policy()
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    command = [sys.executable, "-m", "tuneline.cli.main", "vllm-serve", "--model", str(tmp_path / "teacher"), "--port"]
    command += [str(port), "--dtype", "float32", "--enforce_eager", "--python", python]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        VLLMClient(url, why_down=lambda: None if server.poll() is None else "it ended").wait_until_healthy(240)
        trees = lay_out([Tree([5, 6, 7], [Branch([8, 9, 10]), Branch([11, 12])]), Tree([20, 21], [Branch([22, 23])])])
        said = ServerTeacher(url, model.config.vocab_size, beta=0.0, top_k=5, add_tail=True, timeout=120).answer(trees)
        own = ServerTeacher(url, model.config.vocab_size, beta=1.0, top_k=1, add_tail=True, timeout=120).answer(trees)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    whole = [([5, 6, 7], [8, 9, 10]), ([5, 6, 7], [11, 12]), ([20, 21], [22, 23])]
    expected = []
    for prompt, ids in whole:
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + ids])).logits[0].float().log_softmax(-1)
        expected.append(logprobs[len(prompt) - 1 : -1])
    rows = torch.cat(expected)
    top = rows.topk(5)
    assert_close(said.logprobs, top.values, rtol=1e-4, atol=1e-4)
    assert_close(rows.gather(-1, said.token_ids), said.logprobs, rtol=1e-4, atol=1e-4)
    assert_close(own.logprobs[:, 0], rows.gather(-1, trees.target_ids[:, None])[:, 0], rtol=1e-4, atol=1e-4)
    assert own.token_ids[:, 0].tolist() == trees.target_ids.tolist()
