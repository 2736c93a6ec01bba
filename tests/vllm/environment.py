"""Where vLLM is, for tests that need a real one."""

import os
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
# Room for few tokens, one thread, and no choice of cores: these tests share a small machine.
SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


@cache
def vllm_python():
    """The interpreter with vLLM: TUNELINE_VLLM_PYTHON's, else .venv-vllm's; None where there is none."""
    python = Path(os.environ.get("TUNELINE_VLLM_PYTHON") or ROOT / ".venv-vllm/bin/python")
    if not python.is_file():
        return None
    found = subprocess.run([python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"])
    return None if found.returncode else str(python)


def require_vllm():
    python = vllm_python()
    if python is None:
        pytest.skip(
            "no interpreter with vllm: make .venv-vllm from requirements-vllm.lock, or set TUNELINE_VLLM_PYTHON"
        )
    return python


def arguments(**settings):
    """Settings of a trainer, with their defaults but for `vllm_mode`."""
    return SimpleNamespace(
        **{
            **dict(
                vllm_mode="server",
                vllm_model_impl="vllm",
                vllm_enable_sleep_mode=False,
                vllm_structured_outputs_regex=None,
                vllm_server_base_url=None,
                vllm_server_host="127.0.0.1",
                vllm_server_port=8000,
                vllm_server_timeout=240.0,
                vllm_server_start=False,
                vllm_server_python=None,
                vllm_request_timeout=600.0,
                vllm_gpu_memory_utilization=0.3,
                vllm_max_model_length=None,
                vllm_tensor_parallel_size=1,
                bf16=False,
                fp16=False,
                output_dir=None,
            ),
            **settings,
        }
    )
