"""Runs inside vLLM's workers: a weight-transfer backend that reads shared memory, where vLLM's own need GPUs.

`vllm serve --worker-extension-cls tuneline.rollout.vllm_worker.WorkerExtension --weight-transfer-config
'{"backend": "tuneline"}'` loads it; from then on vLLM's own calls (`/init_weight_transfer_engine`,
`/start_weight_update`, `/update_weights`, `/finish_weight_update`) take a safetensors file in memory that both
processes see. Nothing is unpickled. In the process itself the tensors are handed over as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info

from tuneline.rollout.vllm_wire import BACKEND


class WorkerExtension:
    """Empty: vLLM imports this module to find it, and that makes the backend known in the worker."""


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    """`probe` is a file the trainer just wrote where it will write weights: the worker must be able to read it."""

    probe: str | None = None


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    """All weights, under their names in a checkpoint: in a safetensors file, or as they are."""

    path: str | None = None
    tensors: Mapping[str, Tensor] | None = None


class SharedMemoryTransfer(WeightTransferEngine):
    """Weights from a safetensors file that lies in shared memory, all in one `load_weights` call."""

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        if init_info.probe is not None and not Path(init_info.probe).is_file():
            raise ValueError(f"the worker cannot see {init_info.probe}: it shares no such folder with the trainer")

    def start_weight_update(self) -> None:
        # Layers may have packed their weights for a kernel; this brings back the shapes of the checkpoint.
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        with self._undone_on_failure():
            self._load(update_info)

    def _load(self, update_info: SharedMemoryUpdate) -> None:
        if update_info.tensors is not None:
            self.model.load_weights(iter(update_info.tensors.items()))
        elif update_info.path is not None:
            self.model.load_weights(_tensors_of(update_info.path))
        else:
            raise ValueError("update_info names neither `path` nor `tensors`")

    def finish_weight_update(self) -> None:
        with self._undone_on_failure():
            finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            # A tied head has packed its own copy of the embeddings, and no weight of its own comes to renew it.
            for layer in self.model.modules():
                if isinstance(layer, ParallelLMHead):
                    layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        pass

    @contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """What waits to be loaded is dropped where loading fails, or the next update would load it too."""
        try:
            yield
        except Exception:
            for layer in self.model.modules():
                waiting = get_layerwise_info(layer)
                if waiting.can_load() and waiting.kernel_tensors is not None:
                    _place_kernel_tensors(layer, waiting)
                waiting.reset()
            raise


def _tensors_of(path: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118  a file is no mapping
            yield name, file.get_tensor(name)


WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryTransfer)
