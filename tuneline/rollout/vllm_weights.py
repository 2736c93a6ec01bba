"""The policy's weights as a checkpoint names them, and the folder in memory through which they reach vLLM.

Adapters are merged into copies, one layer at a time, never in place: merging and unmerging a float16 weight does not
give it back.
"""

from __future__ import annotations

import atexit
import copy
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion

from tuneline.errors import ModelError, RolloutError
from tuneline.models.layouts import base_model

# Settings of LoRA that vLLM's kernels do not have, and the value that leaves them out.
_PLAIN = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def checkpoint_tensors(model: nn.Module, *, merged: bool = True) -> dict[str, Tensor]:
    """Every weight once, by its name in a checkpoint of the base model; tied weights under the first of their names.

    Args:
        model: a transformers model or a PEFT model. Sharded weights (FSDP2) are gathered, so all ranks must call.
        merged: add the active adapters to the weights; else the weights are those under the adapters.

    Raises:
        ModelError: quantised weights, an adapter that changes no weights and so cannot be merged, or one that unties
            two weights.
    """
    if isinstance(model, PeftModel) and merged and model.active_peft_config.is_prompt_learning:
        raise ModelError(
            f"the adapter is {model.active_peft_config.peft_type}, which changes no weights, and vLLM takes weights "
            "alone; use LoRA, or the transformers engine."
        )
    base = base_model(model)
    tensors: dict[str, Tensor] = {}
    for name, tensor in _once(_walk(base, "", merged)):
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ModelError(
                f"{name} is {tensor.dtype}: quantised weights cannot be handed to vLLM; load the policy without "
                "quantisation, or use the transformers engine."
            )
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        tensors[name] = full.detach()
    if untied := tensors.keys() - {name for name, _ in _once(_walk(base, "", False))}:
        raise ModelError(
            f"the adapter changes one of two tied weights, and {', '.join(sorted(untied))} no longer is the other's; "
            "leave embeddings and head out of target_modules and modules_to_save."
        )
    return revert_weight_conversion(base, tensors)


def _once(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    seen: dict[int, Tensor] = {}  # kept alive: merged weights are made on the way, and an id may come again
    for name, tensor in named:
        if id(tensor) not in seen:
            seen[id(tensor)] = tensor
            yield name, tensor


def _walk(module: nn.Module, prefix: str, merged: bool) -> Iterator[tuple[str, Tensor]]:
    if isinstance(module, BaseTunerLayer):
        module = _merged(module) if merged else module.get_base_layer()
    elif isinstance(module, ModulesToSaveWrapper):
        module = module.modules_to_save[module.active_adapters[0]] if merged else module.original_module
    elif isinstance(module, AuxiliaryTrainingWrapper):
        raise ModelError(
            f"{prefix.rstrip('.')} is wrapped by a {type(module).__name__}, which vLLM cannot follow; leave "
            "trainable_token_indices out, or use the transformers engine."
        )
    for name, parameter in module.named_parameters(recurse=False):
        yield prefix + name, parameter
    if any(True for _ in module.buffers(recurse=False)):
        kept = module.state_dict()
        for name, buffer in module.named_buffers(recurse=False):
            if name in kept and buffer.is_floating_point():
                yield prefix + name, buffer
    for name, child in module.named_children():
        yield from _walk(child, f"{prefix}{name}.", merged)


def _merged(layer: Any) -> nn.Module:
    layer = copy.deepcopy(layer)
    layer.merge()
    return layer.get_base_layer()


def plain_lora(model: nn.Module) -> LoraConfig | None:
    """The configuration of the one adapter that is all that trains, if vLLM can run it beside the base weights."""
    if not isinstance(model, PeftModel) or len(model.active_adapters) != 1:
        return None
    config = model.active_peft_config
    if not isinstance(config, LoraConfig):
        return None
    if any((getattr(config, name) or None) != (plain or None) for name, plain in _PLAIN.items()):
        return None
    if any(p.requires_grad and ".lora_" not in name for name, p in model.named_parameters()):
        return None
    adapted = (name for name, module in base_model(model).named_modules() if isinstance(module, BaseTunerLayer))
    is_outside = any("layers." not in name for name in adapted)  # embeddings and heads are other kernels
    return None if is_outside else config


class WeightFolder:
    """A folder in memory that the trainer and vLLM both see; what is written here `close` removes, if nothing did.

    Raises:
        RolloutError: it does not exist, or is full.
    """

    def __init__(self, folder: str | Path = "/dev/shm"):
        self.folder = Path(folder)
        self._written: set[Path] = set()
        if not self.folder.is_dir():
            raise RolloutError(
                f"the folder {self.folder} for weights on their way to vLLM does not exist; name another."
            )
        atexit.register(self.close)  # memory that nobody else would give back

    def probe(self) -> Path:
        """A file by which a worker shows that it sees this folder."""
        path = self._new("probe")
        path.touch()
        return path

    def write_weights(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Path:
        """A safetensors file; matrices in `dtype`, vectors as they are, since some are kept in float32."""
        path = self._new("weights", ".safetensors")
        ready = {name: (t.to(dtype) if t.dim() > 1 else t).contiguous() for name, t in tensors.items()}
        self._save(ready, path)
        return path

    def write_adapter(self, model: PeftModel, config: LoraConfig) -> Path:
        """A folder as PEFT saves adapters."""
        path = self._new("adapter")
        path.mkdir()
        adapter = get_peft_model_state_dict(model, adapter_name=model.active_adapters[0], save_embedding_layers=False)
        full = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in adapter.items()}
        self._save({name: t.detach().contiguous() for name, t in full.items()}, path / "adapter_model.safetensors")
        # How the adapter began is in the base weights already.
        settings = {**config.to_dict(), "init_lora_weights": True, "inference_mode": True}
        (path / "adapter_config.json").write_text(json.dumps(settings, default=_jsonable))
        return path

    def remove(self, path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        self._written.discard(path)

    def close(self) -> None:
        for path in list(self._written):
            self.remove(path)
        atexit.unregister(self.close)

    def _new(self, kind: str, suffix: str = "") -> Path:
        path = self.folder / f"tuneline-{kind}-{uuid.uuid4().hex}{suffix}"
        self._written.add(path)
        return path

    def _save(self, tensors: dict[str, Tensor], path: Path) -> None:
        needed, free = sum(t.numel() * t.element_size() for t in tensors.values()), shutil.disk_usage(path.parent).free
        if needed > free:
            raise RolloutError(
                f"the weights take {needed / 2**20:.0f} MiB and {self.folder} has {free / 2**20:.0f} MiB left; make "
                "room there, or name another folder that vLLM sees too."
            )
        save_file(tensors, path)


def _jsonable(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
