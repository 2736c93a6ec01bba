"""Which engine the settings ask for."""

import sys
from dataclasses import asdict, replace

import pytest
import torch

from tests.models import tiny_causal_lm
from tests.vllm.environment import arguments
from tests.vllm.policies import tiny_policy
from tests.vllm.small_server import FACTS, SmallServer, healthy
from tuneline.errors import ConfigError, RolloutError
from tuneline.rollout.vllm_config import compute_dtype, make_vllm_engine, write_blueprint
from tuneline.rollout.vllm_launch import reserved_rank, server_options, start_server
from tuneline.rollout.vllm_wire import DESCRIBE


@pytest.fixture
def policy():
    """The model that the small server says it serves, and some tokenizer."""
    return tiny_causal_lm(), tiny_policy()[1]


def test_a_given_server_is_reached_by_url_or_by_host_and_port(policy):
    with SmallServer(healthy()).running() as server:
        port = int(server.url.rsplit(":", 1)[1])
        for settings in ({"vllm_server_base_url": server.url}, {"vllm_server_port": port}):
            engine = make_vllm_engine(arguments(**settings), *policy, min_length=128)
            assert engine.client.base_url == server.url
            engine.close()


def test_a_given_server_of_another_model_is_refused_before_training(policy):
    with SmallServer(healthy()).running() as server:
        server.answers[DESCRIBE] = (200, asdict(replace(FACTS, vocab_size=99)))
        with pytest.raises(RolloutError, match="vocabulary size 99"):
            make_vllm_engine(arguments(vllm_server_base_url=server.url), *policy)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"vllm_mode": "remote"}, "use 'colocate' or 'server'"),
        ({"vllm_mode": "colocate"}, "would pin the training to one thread"),
        ({"vllm_server_base_url": "somewhere"}, "write http://HOST:PORT"),
    ],
)
def test_settings_that_go_with_no_engine_are_refused(policy, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        make_vllm_engine(arguments(**settings), *policy)


def test_vllm_computes_in_the_type_the_trainer_does():
    model = tiny_causal_lm()
    assert compute_dtype(arguments(), model) == "float32"
    assert compute_dtype(arguments(bf16=True), model) == "bfloat16"
    assert compute_dtype(arguments(fp16=True), model) == "float16"
    assert compute_dtype(arguments(), model.to(torch.bfloat16)) == "bfloat16"


def test_a_blueprint_names_the_architecture_and_holds_no_weights(policy, tmp_path):
    write_blueprint(*policy, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "tokenizer.json"} <= names
    assert not any(name.endswith(".safetensors") for name in names)
    assert '"Qwen2ForCausalLM"' in (tmp_path / "config.json").read_text()


def test_a_server_holds_the_next_larger_rank():
    assert [reserved_rank(rank) for rank in (1, 2, 8, 9, 512)] == [1, 8, 8, 16, 512]
    with pytest.raises(ConfigError, match="at most 512"):
        reserved_rank(513)
    assert "--enable-lora" not in server_options()
    assert server_options(lora_rank=9)[-2:] == ["--max-lora-rank", "16"]


def test_an_interpreter_without_vllm_is_named(tmp_path):
    with pytest.raises(RolloutError, match="has no vllm"):
        start_server(tmp_path, log_file=tmp_path / "log", python=_without_vllm(tmp_path))
    with pytest.raises(RolloutError, match="cannot start a vLLM server with /nowhere/python"):
        start_server(tmp_path, log_file=tmp_path / "log", python="/nowhere/python")


def _without_vllm(folder):
    """An interpreter that has only the standard library."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return python
