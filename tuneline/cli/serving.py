"""`tuneline vllm-serve --model MODEL ...`: vLLM's server, started as training needs it. TRL's flags and YAML keys."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tuneline.cli.parser_models import make_serve_parser
from tuneline.errors import ConfigError
from tuneline.rollout.vllm_launch import become_server, server_options

_PASSED_ON = {
    "revision": "--revision",
    "data_parallel_size": "--data-parallel-size",
    "kv_cache_dtype": "--kv-cache-dtype",
    "log_level": "--uvicorn-log-level",
    "distributed_executor_backend": "--distributed-executor-backend",
    "speculative_config": "--speculative-config",
}


def serve(arguments: Sequence[str]) -> int:
    """Become the server; what vLLM alone knows among the flags is passed on to it as it stands.

    Raises:
        ConfigError: a file of settings that is none, or names one that is not known.
        RolloutError: no such interpreter.
    """
    parser = make_serve_parser()
    first, _ = parser.parse_known_args(arguments)
    if first.config:
        parser.set_defaults(**_settings(Path(first.config), parser))
    settings, rest = parser.parse_known_args(arguments)
    if settings.model is None:
        parser.error("the following arguments are required: --model")
    become_server(settings.model, [*serve_options(settings), *rest], python=settings.python)


def serve_options(settings: argparse.Namespace) -> list[str]:
    """What `vllm serve` gets."""
    options = server_options(
        dtype=settings.dtype,
        max_model_length=settings.max_model_len,
        tensor_parallel_size=settings.tensor_parallel_size,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        model_impl=settings.vllm_model_impl,
        lora_rank=settings.max_lora_rank,
        enforce_eager=settings.enforce_eager,
    )
    options = ["--host", settings.host, "--port", str(settings.port), *options]
    for name, flag in _PASSED_ON.items():
        value = getattr(settings, name)
        if value is not None:
            options += [flag, str(value)]
    if settings.enable_prefix_caching is not None:
        options.append("--enable-prefix-caching" if settings.enable_prefix_caching else "--no-enable-prefix-caching")
    if settings.trust_remote_code:
        options.append("--trust-remote-code")
    return options


def _settings(file: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file}: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"--config {file}: it has to be a mapping, such as `model: NAME`.")
    known = {action.dest for action in parser._actions} - {"help", "config"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(f"--config {file}: {', '.join(unknown)}: not known; there are {', '.join(sorted(known))}.")
    return settings
