"""The rollout engine that runs vLLM in the training process, on the same GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tuneline.errors import ConfigError, RolloutError
from tuneline.logging import get_logger
from tuneline.rollout.images import refuse_images
from tuneline.rollout.protocol import Completion, Request, Sampling
from tuneline.rollout.vllm_launch import reserved_rank
from tuneline.rollout.vllm_sampling import read_output, sampling_params
from tuneline.rollout.vllm_weights import WeightFolder, checkpoint_tensors, plain_lora
from tuneline.rollout.vllm_wire import ADAPTER, BACKEND, WORKER_EXTENSION, support_width

logger = get_logger(__name__)


class VLLMInProcess:
    """vLLM beside the trainer: one engine a process, which takes the policy's tensors as they lie.

    Its first weights are arbitrary: `sync_weights` comes before `generate`. It is for a GPU: on a CPU vLLM pins the
    process to one thread; there use a server.

    Args:
        model: a folder with the model's configuration and tokenizer.
        enable_sleep_mode: keep the engine's weights in main memory and give its cache up while it does not draw.
        lora_rank: of adapters that are handed over without the weights under them; 0 for none.
        engine_options: further arguments of `vllm.LLM`.

    Raises:
        ConfigError: vLLM is not installed.
        RolloutError: vLLM cannot start, or fails.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.3,
        max_model_length: int | None = None,
        model_impl: str = "vllm",
        enable_sleep_mode: bool = False,
        lora_rank: int = 0,
        structured_outputs_regex: str | None = None,
        max_support: int = 512,
        weights_folder: str = "/dev/shm",
        engine_options: dict[str, Any] | None = None,
    ):
        # In a process of its own the engine could not be handed tensors.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("DO_NOT_TRACK", "1")
        try:
            from vllm import LLM
        except ImportError as error:
            raise ConfigError(
                f"vllm_mode='colocate' needs vLLM in this environment ({error}); install it, or use vllm_mode='server' "
                "with a server in another."
            ) from error
        lora = dict(enable_lora=True, max_loras=1, max_lora_rank=reserved_rank(lora_rank)) if lora_rank else {}
        options = dict(
            model=str(model),
            dtype=dtype,
            load_format="dummy",
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len=max_model_length,
            model_impl=model_impl,
            enable_sleep_mode=enable_sleep_mode,
            worker_extension_cls=WORKER_EXTENSION,
            weight_transfer_config={"backend": BACKEND},
            logprobs_mode="processed_logprobs",
            max_logprobs=-1,
            distributed_executor_backend="uni",
            **lora,
        )
        try:
            self._llm = LLM(**{**options, **(engine_options or {})})
            self._llm.init_weight_transfer_engine({"init_info": {}})
        except (RuntimeError, ValueError, OSError) as error:
            raise RolloutError(f"vLLM in this process cannot start: {error}") from error
        config = self._llm.llm_engine.vllm_config
        self.vocab_size: int = config.model_config.get_vocab_size()
        self.max_length: int = config.model_config.max_model_len
        self._max_lora_rank = config.lora_config.max_lora_rank if config.lora_config else 0
        self._regex, self._max_support = structured_outputs_regex, max_support
        self._sleeps = enable_sleep_mode
        self._folder = WeightFolder(weights_folder)
        self._adapter: Any = None
        self._adapter_path: Path | None = None
        self._num_adapters = 0
        self._has_base = False
        self._has_weights = False
        self.num_unknown_supports = 0
        self._sleep()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        if not self._has_weights:
            raise RolloutError("vLLM in this process has no weights of the policy yet; call sync_weights first.")
        refuse_images(requests, "vLLM in this process")
        for request in requests:
            wanted = len(request.prompt_ids) + (request.max_new_tokens or sampling.max_new_tokens)
            if wanted > self.max_length:
                raise RolloutError(
                    f"vLLM in this process: a prompt of {len(request.prompt_ids)} tokens and its completion may take "
                    f"{wanted} tokens, and it holds {self.max_length}; raise vllm_max_model_length."
                )
        width = support_width(sampling, self.vocab_size, self._max_support, self._regex)
        prompts = [{"prompt_token_ids": list(r.prompt_ids)} for r in requests for _ in r.seeds]
        params = [
            sampling_params(sampling, seed, r.max_new_tokens, self._regex, width) for r in requests for seed in r.seeds
        ]
        self._wake()
        try:
            outputs = self._llm.generate(prompts, params, use_tqdm=False, lora_request=self._adapter)
        except (RuntimeError, ValueError) as error:
            raise RolloutError(f"vLLM in this process failed: {error}") from error
        finally:
            self._sleep()
        drawn = iter([read_output(output.outputs[0], width, self.vocab_size) for output in outputs])
        groups = [[next(drawn) for _ in request.seeds] for request in requests]
        unknown = sum(c.support is None for group in groups for c in group) if width else 0
        self.num_unknown_supports += unknown
        if unknown:
            logger.warning("%d completions could draw from more than %d tokens: no support", unknown, self._max_support)
        return groups

    def sync_weights(self, model: nn.Module) -> None:
        started = time.monotonic()
        lora = plain_lora(model)
        is_alone = lora is not None and lora.r <= self._max_lora_rank
        self._wake()
        try:
            if not (is_alone and self._has_base):
                self._load(model, merged=not is_alone)
            self._has_base, self._adapter = is_alone, None
            if is_alone:
                self._load_adapter(model)
            self._llm.reset_prefix_cache()
        except (RuntimeError, ValueError, KeyError) as error:
            self._has_weights = self._has_base = False
            raise RolloutError(f"vLLM in this process did not take the weights: {error}") from error
        finally:
            self._sleep()
        self._has_weights = True
        logger.debug("vLLM in this process took the weights in %.3f s", time.monotonic() - started)

    def close(self) -> None:
        self._folder.close()
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, model: nn.Module, *, merged: bool) -> None:
        tensors = checkpoint_tensors(model, merged=merged)
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": {"tensors": tensors}})
        self._llm.finish_weight_update()

    def _load_adapter(self, model: Any) -> None:
        from vllm.lora.request import LoRARequest

        path = self._folder.write_adapter(model, model.active_peft_config)
        self._num_adapters += 1  # a number of its own makes it another adapter; the last one gives way to it
        self._adapter = LoRARequest(ADAPTER, self._num_adapters, str(path))
        self._llm.llm_engine.add_lora(self._adapter)
        if self._adapter_path is not None:
            self._folder.remove(self._adapter_path)
        self._adapter_path = path

    def _wake(self) -> None:
        if self._sleeps:
            self._llm.wake_up()

    def _sleep(self) -> None:
        if self._sleeps:
            self._llm.sleep(level=1)
