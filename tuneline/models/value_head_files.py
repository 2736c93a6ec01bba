"""What a folder of a model with a value head holds, and the keywords that older code loads it with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.utils import cached_file

from tuneline.logging import get_logger

logger = get_logger(__name__)

PREFIX = "v_head."
HEAD_FILE = "v_head.safetensors"  # beside an adapter, whose own file holds the adapter alone
WHERE_FROM = ("revision", "token", "subfolder", "cache_dir", "local_files_only")

_WEIGHTS_FILE, _INDEX_FILE = "model.safetensors", "model.safetensors.index.json"


def todays_names(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keywords of older releases of transformers under the names they have now."""
    named = dict(kwargs)
    if "torch_dtype" in named:
        logger.warning("torch_dtype is called dtype today")
        named["dtype"] = named.pop("torch_dtype")
    for bits in ("load_in_8bit", "load_in_4bit"):
        if named.pop(bits, False):
            logger.warning("%s=True is quantization_config=BitsAndBytesConfig(%s=True) today", bits, bits)
            named["quantization_config"] = BitsAndBytesConfig(**{bits: True})
    return named


def head_weights(name: str, where: dict[str, Any]) -> dict[str, Tensor]:
    """The value head's weights in a folder or repository, none where it has no head."""

    def found(file: str) -> str | None:
        return find_file(name, file, where)

    if (own := found(HEAD_FILE)) is not None:
        return read_tensors(own)
    files = [found(_WEIGHTS_FILE)]
    if (index := found(_INDEX_FILE)) is not None:
        shards = json.loads(Path(index).read_text())["weight_map"]
        files = [found(shard) for shard in sorted({file for key, file in shards.items() if key.startswith(PREFIX)})]
    held = {key: value for file in files if file is not None for key, value in read_tensors(file, PREFIX).items()}
    return {key.removeprefix(PREFIX): value for key, value in held.items()}


def read_tensors(file: Any, prefix: str = "") -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as weights:
        return {key: weights.get_tensor(key) for key in weights.keys() if key.startswith(prefix)}  # noqa: SIM118


def on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def find_file(name: str, file: str, where: dict[str, Any]) -> str | None:
    """The path of a file in a folder or repository; None where it has none."""
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where)
