"""Settings that are right by themselves and wrong together, and files that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stages.schema import TRAINING_STAGES, PipelineConfig, TrainingSection, is_local
from stages.settings_errors import SettingError


def contradictions(config: PipelineConfig) -> list[SettingError]:
    return [*_missing_files(config), *_noise(config), *_lengths(config), *_launches(config)]


def _missing_files(config: PipelineConfig) -> Iterator[SettingError]:
    prepare, model = config.prepare, config.model
    sources = {"demonstrations": prepare.demonstrations, "preferences": prepare.preferences, "test": prepare.test}
    named = {f"prepare.{name}.path": source.path for name, source in sources.items() if source is not None}
    named |= {"model.name_or_path": model.name_or_path, "model.chat_template": model.chat_template}
    named |= {f"{name}.launch.config_file": _section(config, name).launch.config_file for name in TRAINING_STAGES}
    always_files = ("chat_template", "config_file")
    for path, value in named.items():
        if value is not None and not Path(value).exists() and (is_local(value) or path.endswith(always_files)):
            yield SettingError(path, value, f"no such file or folder in {Path.cwd()}")


def _noise(config: PipelineConfig) -> Iterator[SettingError]:
    for name in ("preferences", "test"):
        source = getattr(config.prepare, name)
        if source is not None and source.synthetic is not None and source.synthetic.noise:
            yield SettingError(
                f"prepare.{name}.synthetic.noise",
                source.synthetic.noise,
                "only demonstrations can be noisy; set it to 0",
            )


def _lengths(config: PipelineConfig) -> Iterator[SettingError]:
    """A model made from a config reads so many tokens and no more; a hub model tells when it is loaded."""
    positions = ((config.model.init and config.model.init.model_extra) or {}).get("max_position_embeddings")
    if not isinstance(positions, int):
        return
    reason = f"the model reads {positions} tokens (model.init.max_position_embeddings)"
    lengths = {"prepare.max_length": config.prepare.max_length}
    lengths |= {
        f"{n}.training.max_length": _section(config, n).training.get("max_length", 1024) for n in TRAINING_STAGES
    }
    lengths["evaluate.max_new_tokens"] = config.evaluate.max_new_tokens
    for path, length in lengths.items():
        if isinstance(length, int) and length > positions:
            yield SettingError(path, length, reason)


def _launches(config: PipelineConfig) -> Iterator[SettingError]:
    for name in TRAINING_STAGES:
        launch = _section(config, name).launch
        if launch.config_file is not None and launch.num_processes != 1:
            reason = f"{launch.config_file} names the number of processes; leave this one out"
            yield SettingError(f"{name}.launch.num_processes", launch.num_processes, reason)
    if config.evaluate.num_side_by_side > (config.evaluate.num_samples or config.evaluate.num_side_by_side):
        reason = f"only {config.evaluate.num_samples} rows are evaluated (evaluate.num_samples)"
        yield SettingError("evaluate.num_side_by_side", config.evaluate.num_side_by_side, reason)


def _section(config: PipelineConfig, name: str) -> TrainingSection:
    section = getattr(config, name)
    assert isinstance(section, TrainingSection)
    return section
