"""What the engine asks of a server, in what order, and what it makes of the answers."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from tests.models import tiny_causal_lm
from tests.vllm.small_server import FACTS, SmallServer, healthy
from tuneline.errors import RolloutError
from tuneline.rollout.protocol import Completion, Request, Sampling
from tuneline.rollout.vllm_server import VLLMServer
from tuneline.rollout.vllm_wire import DESCRIBE, GENERATE, support_width

UPDATE = ["/start_weight_update", "/update_weights", "/finish_weight_update"]
AROUND = ["/reset_prefix_cache", "/resume"]


@pytest.fixture
def server(tmp_path):
    with SmallServer(healthy()).running() as server:
        yield server


@pytest.fixture
def engine(server, tmp_path):
    engine = VLLMServer(server.url, weights_folder=str(tmp_path), request_timeout=5)
    server.calls.clear()
    yield engine
    engine.close()
    assert not list(tmp_path.iterdir())  # nothing stays in memory


def test_completions_come_in_order_from_several_calls(server, tmp_path):
    engine = VLLMServer(server.url, weights_folder=str(tmp_path), max_completions_per_call=4)
    server.calls.clear()
    requests = [Request([i], range(10 * i, 10 * i + 3 + i)) for i in range(4)]
    groups = engine.generate(requests, Sampling(5))
    assert groups == [[Completion([seed, i], [-0.5, -1.0], True) for seed in r.seeds] for i, r in enumerate(requests)]
    sizes = [sum(len(request["seeds"]) for request in body["requests"]) for _, body in server.calls]
    assert sorted(sizes, reverse=True) == [4, 4, 4, 4, 2]


def test_a_call_carries_all_that_decides_a_completion(engine, server):
    sampling = Sampling(9, 0.7, 0.9, 20, 0.1, 1.2, (1, 2))
    engine.generate([Request((3, 4), (2**63 - 1,), max_new_tokens=5)], sampling)
    [(path, body)] = server.calls
    assert path == GENERATE
    assert body == {
        "requests": [{"prompt_ids": [3, 4], "seeds": [2**63 - 1], "max_new_tokens": 5}],
        "sampling": {
            "max_new_tokens": 9,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 20,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "stop_token_ids": [1, 2],
        },
        "regex": None,
        "width": 21,
        "adapter": None,
    }


def test_nothing_is_asked_for_no_requests(engine, server):
    assert engine.generate([], Sampling(5)) == []
    assert server.calls == []


@pytest.mark.parametrize(
    ("sampling", "regex", "width"),
    [
        (Sampling(1), None, 0),
        (Sampling(1, temperature=0.0, top_p=0.5), None, 0),
        (Sampling(1, top_k=5), None, 6),  # five, and one more to see that there is none
        (Sampling(1, top_p=0.9), None, 51),
        (Sampling(1, top_k=80), None, 51),
        (Sampling(1), "a+", 51),
    ],
)
def test_a_support_is_asked_for_where_it_is_cut(sampling, regex, width):
    assert support_width(sampling, 97, 50, regex) == width
    assert support_width(sampling, 3, 50, regex) == min(width, 3)


@pytest.mark.parametrize(
    "answer",
    [
        b"not json",
        {"completions": []},
        {"completions": [[]]},
        {"completions": [[{"ids": [1]}]]},
        {"completions": [[{"ids": [1, 2], "logprobs": [-1.0], "is_finished": True, "support": None}]]},
        {"completions": [[{"ids": [], "logprobs": [], "is_finished": True, "support": None}]]},
        ["completions"],
    ],
)
def test_an_answer_that_is_none_is_an_error(engine, server, answer):
    server.answers[GENERATE] = (200, answer)
    with pytest.raises(RolloutError, match=rf"{server.url}: POST {GENERATE}: not an answer"):
        engine.generate([Request([3], [1])], Sampling(5))


def test_a_prompt_without_room_for_its_completion_is_refused_before_it_is_sent(engine, server):
    with pytest.raises(RolloutError, match="may take 129 tokens, and the server holds 128"):
        engine.generate([Request([3] * 100, [1])], Sampling(29))
    engine.generate([Request([3] * 100, [1], max_new_tokens=28)], Sampling(29))
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (replace(FACTS, logprobs_mode="raw_logprobs"), "must be processed_logprobs"),
        (replace(FACTS, backend="nccl"), "is nccl, and must be tuneline"),
        (replace(FACTS, backend=None), "must be tuneline"),
        (replace(FACTS, max_logprobs=20), "--max-logprobs is 20"),
    ],
)
def test_a_server_started_with_other_options_is_refused(server, tmp_path, facts, reason):
    server.answers[DESCRIBE] = (200, asdict(facts))
    with pytest.raises(RolloutError, match=reason):
        VLLMServer(server.url, weights_folder=str(tmp_path))


@pytest.mark.parametrize("answer", [(404, {"detail": "Not Found"}), (200, {"version": "1"}), (200, b"<html>")])
def test_a_server_without_our_service_is_told_how_to_start(server, tmp_path, answer):
    server.answers[DESCRIBE] = answer
    with pytest.raises(RolloutError, match=r"does not say what it serves .*--middleware tuneline\."):
        VLLMServer(server.url, weights_folder=str(tmp_path))


def test_a_folder_that_only_the_trainer_sees_is_found_out_before_training(server, tmp_path):
    server.answers["/init_weight_transfer_engine"] = (500, {"error": {"message": "the worker cannot see it"}})
    with pytest.raises(RolloutError, match="/init_weight_transfer_engine: status 500: the worker cannot see it"):
        VLLMServer(server.url, weights_folder=str(tmp_path))
    with pytest.raises(RolloutError, match="does not exist"):
        VLLMServer(server.url, weights_folder=str(tmp_path / "nowhere"))


def test_weights_go_over_at_once_while_nothing_is_drawn(engine, server):
    model = tiny_causal_lm()
    seen = {}

    def read(body, _):
        seen.update(load_file(body["update_info"]["path"]))
        return 200, {}

    server.answers["/update_weights"] = read
    engine.sync_weights(model)
    assert server.paths() == ["/pause?mode=wait", *UPDATE, *AROUND]
    expected = dict(model.named_parameters())  # a tied head is named once
    assert seen.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in seen.items())


def test_matrices_go_over_in_the_servers_type(server, tmp_path):
    server.answers[DESCRIBE] = (200, asdict(replace(FACTS, dtype="bfloat16")))
    dtypes = {}

    def read(body, _):
        dtypes.update({name: tensor.dtype for name, tensor in load_file(body["update_info"]["path"]).items()})
        return 200, {}

    server.answers["/update_weights"] = read
    VLLMServer(server.url, weights_folder=str(tmp_path)).sync_weights(tiny_causal_lm())
    assert dtypes["model.embed_tokens.weight"] == torch.bfloat16
    assert dtypes["model.norm.weight"] == torch.float32


def test_of_an_adapter_only_the_first_update_carries_the_base(engine, server):
    model = get_peft_model(tiny_causal_lm(), LoraConfig(r=4, target_modules=["q_proj"]))
    sizes = []

    def load(body, _):
        sizes.append((Path(body["lora_path"]) / "adapter_model.safetensors").stat().st_size)
        return 200, b"Success"

    server.answers["/v1/load_lora_adapter"] = load
    engine.sync_weights(model)
    engine.sync_weights(model)
    first, second = (
        ["/pause?mode=wait", *UPDATE, "/v1/load_lora_adapter"],
        ["/pause?mode=wait", "/v1/load_lora_adapter"],
    )
    assert server.paths() == [*first, *AROUND, *second, *AROUND]
    assert len(sizes) == 2
    server.calls.clear()
    engine.generate([Request([3], [1])], Sampling(5))
    assert server.calls[0][1]["adapter"] == "policy"
    engine.sync_weights(tiny_causal_lm())
    engine.generate([Request([3], [1])], Sampling(5))
    assert server.calls[-1][1]["adapter"] is None


def test_an_adapter_of_a_higher_rank_than_the_server_holds_is_merged(engine, server):
    model = get_peft_model(tiny_causal_lm(), LoraConfig(r=16, target_modules=["q_proj"]))
    engine.sync_weights(model)
    assert "/v1/load_lora_adapter" not in server.paths()
    assert UPDATE[1] in server.paths()


@pytest.mark.parametrize("path", [*UPDATE, "/reset_prefix_cache"])
def test_a_failed_update_lets_the_server_go_on_and_stops_the_drawing(engine, server, path):
    working = server.answers[path]
    server.answers[path] = (500, {"error": {"message": "no memory"}})
    with pytest.raises(RolloutError, match=rf"{server.url}: POST {path}: status 500: no memory"):
        engine.sync_weights(tiny_causal_lm())
    assert server.paths()[-1] == "/resume"
    with pytest.raises(RolloutError, match=r"not the policy's: an update failed .*no memory"):
        engine.generate([Request([3], [1])], Sampling(5))
    server.answers[path] = working
    engine.sync_weights(tiny_causal_lm())
    engine.generate([Request([3], [1])], Sampling(5))


def test_a_prefix_cache_that_was_not_emptied_is_an_error(engine, server):
    server.answers["/reset_prefix_cache"] = (200, {"success": False})
    with pytest.raises(RolloutError, match="kept entries of the old weights"):
        engine.sync_weights(tiny_causal_lm())


def test_a_folder_without_room_is_an_error_before_anything_is_written(engine, server, monkeypatch, tmp_path):
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("tuneline.rollout.vllm_weights.shutil.disk_usage", lambda _: full)
    with pytest.raises(RolloutError, match="MiB left; make room"):
        engine.sync_weights(tiny_causal_lm())


def test_what_the_server_serves_is_compared_with_the_policy(engine, server):
    engine.check(tiny_causal_lm(), min_length=128)
    with pytest.raises(RolloutError, match="raise vllm_max_model_length"):
        engine.check(tiny_causal_lm(), min_length=129)
    with pytest.raises(RolloutError, match="model type qwen2, and the policy has llama"):
        engine.check(tiny_causal_lm("llama"))
    with pytest.raises(RolloutError, match="vocabulary size 97, and the policy has 98"):
        engine.check(tiny_causal_lm(vocab_size=98))


def test_among_several_ranks_the_first_hands_over_and_its_failure_is_all_ranks(engine, server, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        engine.sync_weights(tiny_causal_lm())
        assert server.paths() == ["/pause?mode=wait", *UPDATE, *AROUND]
        server.answers["/update_weights"] = (500, {"error": {"message": "no memory"}})
        with pytest.raises(RolloutError, match="no memory"):
            engine.sync_weights(tiny_causal_lm())
    finally:
        dist.destroy_process_group()
        (tmp_path / "ranks").unlink(missing_ok=True)
