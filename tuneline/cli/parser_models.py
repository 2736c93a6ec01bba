"""Flags of the commands that run a model: `tuneline chat` and `tuneline vllm-serve`."""

import argparse
from typing import Any


def add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a stage of the line (sft, dpo, ...), a folder, or a name on a hub"
    )
    parser.add_argument("--system", metavar="TEXT", help="what the system says first")
    parser.add_argument(
        "--reward-model",
        metavar="MODEL",
        help="scores each answer (default: the line's, where models are stages of it; none: no scores)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="answers end here (default 512)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: the likeliest token (default: the model's)")
    parser.add_argument("--top-p", type=float, metavar="P", help="(default: the model's)")
    parser.add_argument("--top-k", type=int, metavar="K", help="(default: the model's)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same answers again (default: others each time)")
    parser.add_argument("--dtype", default="auto", metavar="TYPE", help="such as bfloat16 (default: the model's)")
    parser.add_argument("--device", metavar="DEVICE", help="such as cuda:1 (default: a GPU where there is one)")


def make_serve_parser() -> argparse.ArgumentParser:
    """The flags of `tuneline vllm-serve`; others are vLLM's own."""
    parser = argparse.ArgumentParser(
        prog="tuneline vllm-serve",
        description="Serve a model for training with vLLM, on the loopback address. Flags that are not listed here are "
        "passed on to `vllm serve`.",
        allow_abbrev=False,
    )

    def flag(name: str, **options: Any) -> None:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, dest=name, **options)

    flag("config", metavar="FILE", help="a YAML file with these settings")
    flag("model", metavar="MODEL", help="a folder, or a name on a hub")
    flag("revision", metavar="REV", help="branch, tag or commit on the hub")
    flag("host", default="127.0.0.1", metavar="HOST", help="(default 127.0.0.1; whoever reaches it can change it)")
    flag("port", type=int, default=8000, metavar="PORT", help="(default 8000)")
    flag("tensor_parallel_size", type=int, default=1, metavar="N", help="GPUs that share the model (default 1)")
    flag("data_parallel_size", type=int, metavar="N", help="copies of the model")
    flag("gpu_memory_utilization", type=float, default=0.9, metavar="SHARE", help="of the GPU's memory (default 0.9)")
    flag("dtype", default="auto", metavar="TYPE", help="such as bfloat16 (default: the model's)")
    flag("max_model_len", type=int, metavar="N", help="longest prompt and completion together (default: the model's)")
    flag("enable_prefix_caching", type=_yes_or_no, metavar="true|false", help="(default: vLLM's)")
    flag("enforce_eager", nargs="?", type=_yes_or_no, const=True, default=False, help="no compiling: starts sooner")
    flag("kv_cache_dtype", metavar="TYPE", help="of the cache (default: the model's)")
    flag("trust_remote_code", nargs="?", type=_yes_or_no, const=True, default=False, help="run code of the model's own")
    flag("log_level", metavar="LEVEL", help="of the server's requests")
    flag("vllm_model_impl", default="vllm", metavar="IMPL", help="vllm or transformers")
    flag("distributed_executor_backend", metavar="NAME", help="such as ray, over several hosts")
    flag("speculative_config", metavar="JSON", help="of speculative decoding")
    flag("max_lora_rank", type=int, default=0, metavar="R", help="take adapters up to this rank by themselves")
    flag("python", metavar="PATH", help="the interpreter with vLLM (default: TUNELINE_VLLM_PYTHON's, or this one)")
    return parser


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "yes", "1")
