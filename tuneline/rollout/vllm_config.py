"""Which vLLM engine a trainer's settings ask for."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from tuneline.errors import ConfigError, RolloutError
from tuneline.models.layouts import base_model
from tuneline.rollout.vllm_inprocess import VLLMInProcess
from tuneline.rollout.vllm_launch import ServerProcess, server_options, start_server
from tuneline.rollout.vllm_server import VLLMServer


class VLLMArguments(Protocol):
    """The settings that are read here: TRL's names and meaning, and three of our own.

    Attributes:
        vllm_mode: `colocate`, in the training process, or `server`.
        vllm_server_timeout: seconds until the server must be healthy.
        vllm_server_start: start the server here, on a free port of the loopback address, instead of expecting it at
            vllm_server_base_url, or vllm_server_host and vllm_server_port.
        vllm_server_python: the interpreter of the environment with vLLM for a server that is started here.
        vllm_request_timeout: seconds for any one call to a server.
    """

    vllm_mode: str
    vllm_model_impl: str
    vllm_enable_sleep_mode: bool
    vllm_structured_outputs_regex: str | None
    vllm_server_base_url: str | None
    vllm_server_host: str
    vllm_server_port: int
    vllm_server_timeout: float
    vllm_server_start: bool
    vllm_server_python: str | None
    vllm_request_timeout: float
    vllm_gpu_memory_utilization: float
    vllm_max_model_length: int | None
    vllm_tensor_parallel_size: int
    bf16: bool
    fp16: bool
    output_dir: str | None


def make_vllm_engine(
    args: VLLMArguments, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, min_length: int = 0
) -> VLLMServer | VLLMInProcess:
    """The engine, started or reached, and checked; it has no weights of the policy until `sync_weights`.

    Args:
        model: the policy, unwrapped; it may be a PEFT model.
        min_length: tokens of the longest prompt and the longest completion together; 0 checks nothing.

    Raises:
        ConfigError: settings that go together with no engine.
        RolloutError: the server is not reached, or is not the policy's.
    """
    match args.vllm_mode:
        case "colocate":
            return _in_process(args, model, tokenizer)
        case "server":
            engine = _own_server(args, model, tokenizer) if args.vllm_server_start else _given_server(args)
        case _:
            raise ConfigError(f"vllm_mode={args.vllm_mode!r} is unknown; use 'colocate' or 'server'.")
    try:
        engine.check(model, min_length)
    except RolloutError:
        engine.close()
        raise
    return engine


def write_blueprint(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """A folder from which vLLM builds the model without weights, which come from the policy."""
    base = base_model(model)
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def compute_dtype(args: VLLMArguments, model: nn.Module) -> str:
    """The type the trainer computes in, by its name in torch."""
    if args.bf16 or args.fp16:
        return "bfloat16" if args.bf16 else "float16"
    return str(next(base_model(model).parameters()).dtype).removeprefix("torch.")


def _in_process(args: VLLMArguments, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> VLLMInProcess:
    device = next(model.parameters()).device
    if device.type == "cpu":
        raise ConfigError(
            "vllm_mode='colocate' on a CPU: vLLM would pin the training to one thread; use vllm_mode='server' with "
            "vllm_server_start=True, or the transformers engine."
        )
    if args.vllm_tensor_parallel_size != 1:
        raise ConfigError(
            f"vllm_tensor_parallel_size={args.vllm_tensor_parallel_size} with vllm_mode='colocate': each process "
            "runs an engine of its own there; use vllm_mode='server'."
        )
    with tempfile.TemporaryDirectory(prefix="tuneline-vllm-") as folder:
        return VLLMInProcess(
            write_blueprint(model, tokenizer, folder),
            dtype=compute_dtype(args, model),
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_length=args.vllm_max_model_length,
            model_impl=args.vllm_model_impl,
            enable_sleep_mode=args.vllm_enable_sleep_mode,
            lora_rank=_lora_rank(model),
            structured_outputs_regex=args.vllm_structured_outputs_regex,
        )


def _given_server(args: VLLMArguments) -> VLLMServer:
    url = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
    return _reach(args, url, None)


def _reach(args: VLLMArguments, base_url: str, process: ServerProcess | None) -> VLLMServer:
    return VLLMServer(
        base_url,
        process=process,
        request_timeout=args.vllm_request_timeout,
        wait_timeout=args.vllm_server_timeout,
        structured_outputs_regex=args.vllm_structured_outputs_regex,
    )


def _own_server(args: VLLMArguments, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> VLLMServer:
    """Rank 0 starts it and tells the others where it is."""
    is_alone = not (dist.is_available() and dist.is_initialized())
    started: list[Any] = [None, None]  # address, or what went wrong
    process = None
    if is_alone or dist.get_rank() == 0:
        try:
            folder = Path(args.output_dir or tempfile.mkdtemp(prefix="tuneline-vllm-")) / "vllm"
            process = start_server(
                write_blueprint(model, tokenizer, folder / "model"),
                python=args.vllm_server_python,
                options=_options(args, model),
                log_file=folder / "server.log",
                timeout=args.vllm_server_timeout,
            )
            started[0] = process.base_url
        except RolloutError as error:
            started[1] = str(error)
    if not is_alone:
        dist.broadcast_object_list(started, src=0)
    if started[1] is not None:
        raise RolloutError(started[1])
    try:
        return _reach(args, started[0], process)
    except RolloutError:
        if process is not None:
            process.close()
        raise


def _options(args: VLLMArguments, model: nn.Module) -> list[str]:
    on_cpu = next(model.parameters()).device.type == "cpu"
    return [
        *server_options(
            dtype=compute_dtype(args, model),
            max_model_length=args.vllm_max_model_length,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            model_impl=args.vllm_model_impl,
            lora_rank=_lora_rank(model),
            enforce_eager=on_cpu,  # the small models a CPU serves are not worth waiting for a compiler
        ),
        "--load-format",
        "dummy",
    ]


def _lora_rank(model: nn.Module) -> int:
    """0 without an adapter."""
    if not isinstance(model, PeftModel) or not isinstance(model.active_peft_config, LoraConfig):
        return 0
    return model.active_peft_config.r
