"""Fetches the model that a line starts from, where that is a version of MLflow's registry; see `stages.start`."""

from __future__ import annotations

import json
from pathlib import Path

from stages.schema import PipelineConfig
from stages.start import START, START_RECORD, is_of_registry, registry_place
from stages.storage import write_whole


def fetch_start(root: Path, config: PipelineConfig) -> None:
    """Bring models/start to what the address means now; an alias that has not moved costs one question.

    Raises:
        RegistryError: MLflow cannot be reached, or has no such version.
        ModelError: DVC's cache and remote do not have its content.
    """
    uri = config.model.name_or_path
    if uri is None or not is_of_registry(uri):
        return
    from tasks.model_files import fetch_model
    from tasks.registry import Registry

    model, number, alias = registry_place(uri)
    registry = Registry(root)
    version = registry.version(model, number) if number else registry.by_alias(model, alias)
    record = root / START_RECORD
    known = json.loads(record.read_text()) if record.is_file() else {}
    if known.get("md5") != version.md5 or not (root / START).is_dir():
        fetch_model(root, version.md5, root / START)
    found = {"uri": uri, "model": model, "version": version.version, "md5": version.md5}
    if found != known:
        write_whole(record, json.dumps(found, indent=1) + "\n")
