"""Settings that are right by themselves and wrong together, and files that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stages.schema import (
    MOST_REWARD_PATHS,
    ONLINE_STAGES,
    TRAINING_STAGES,
    OnlineSection,
    PipelineConfig,
    TrainingSection,
    is_local,
)
from stages.settings_errors import MISSING, SettingError


def contradictions(config: PipelineConfig) -> list[SettingError]:
    checks = (_missing_files, _noise, _lengths, _launches, _rewards, _evaluation, _collection)
    return [error for check in checks for error in check(config)]


def _missing_files(config: PipelineConfig) -> Iterator[SettingError]:
    prepare, model = config.prepare, config.model
    sources = {name: getattr(prepare, name) for name in ("demonstrations", "preferences", "prompts", "test")}
    named = {f"prepare.{name}.path": source.path for name, source in sources.items() if source is not None}
    named |= {"prepare.collected": prepare.collected}
    named |= {"model.name_or_path": model.name_or_path, "model.chat_template": model.chat_template}
    named |= {f"{name}.launch.config_file": _section(config, name).launch.config_file for name in TRAINING_STAGES}
    always_files = ("chat_template", "config_file")
    for path, value in named.items():
        if value is not None and not Path(value).exists() and (is_local(value) or path.endswith(always_files)):
            yield SettingError(path, value, f"no such file or folder in {Path.cwd()}")


def _noise(config: PipelineConfig) -> Iterator[SettingError]:
    for option, whose, reason in (
        ("noise", "demonstrations", "only demonstrations can be noisy; set it to 0"),
        ("slips", "preferences", "only preferences have rejected answers; set it to 0"),
    ):
        for name in ("demonstrations", "preferences", "prompts", "test"):
            source = getattr(config.prepare, name)
            value = getattr(source.synthetic, option) if source is not None and source.synthetic is not None else 0
            if name != whose and value:
                yield SettingError(f"prepare.{name}.synthetic.{option}", value, reason)


def _lengths(config: PipelineConfig) -> Iterator[SettingError]:
    """A model made from a config reads so many tokens and no more; a hub model tells when it is loaded."""
    positions = ((config.model.init and config.model.init.model_extra) or {}).get("max_position_embeddings")
    if not isinstance(positions, int):
        return
    reason = f"the model reads {positions} tokens (model.init.max_position_embeddings)"
    lengths = {"prepare.max_length": config.prepare.max_length}
    lengths |= {
        f"{n}.training.max_length": _section(config, n).training.get("max_length", 1024)
        for n in ("sft", "reward", "dpo")
        if config.why_off(n) is None
    }
    for name, option, default in (("ppo", "response_length", 53), ("grpo", "max_completion_length", 512)):
        if config.why_off(name) is None:
            lengths[f"{name}.training.{option}"] = _section(config, name).training.get(option, default)
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


def _rewards(config: PipelineConfig) -> Iterator[SettingError]:
    for name in ONLINE_STAGES:
        section = _section(config, name)
        assert isinstance(section, OnlineSection)
        yield from _rewards_of(name, section, config)


def _rewards_of(name: str, section: OnlineSection, config: PipelineConfig) -> Iterator[SettingError]:
    paths = section.reward_paths
    if len(paths) > MOST_REWARD_PATHS:
        reason = (
            f"are made from {len(paths)} files and folders ({', '.join(paths)}), at most {MOST_REWARD_PATHS} can be"
        )
        yield SettingError(f"{name}.rewards", MISSING, reason)
    for number, reward in enumerate(section.rewards):
        where = f"{name}.rewards.{number}"
        if reward.model is True and config.why_off("reward") is not None:
            yield SettingError(f"{where}.model", True, f"the line has no reward model ({config.why_off('reward')})")
        if isinstance(reward.model, str) and is_local(reward.model) and not Path(reward.model).exists():
            yield SettingError(f"{where}.model", reward.model, f"no such file or folder in {Path.cwd()}")
        if reward.url is not None and not reward.url.startswith(("http://", "https://")):
            yield SettingError(f"{where}.url", reward.url, "should begin with http:// or https://")


def _evaluation(config: PipelineConfig) -> Iterator[SettingError]:
    options = config.evaluate
    if options.num_side_by_side > (options.num_samples or options.num_side_by_side):
        reason = f"only {options.num_samples} rows are evaluated (evaluate.num_samples)"
        yield SettingError("evaluate.num_side_by_side", options.num_side_by_side, reason)
    if max(options.pass_at, default=1) > options.num_completions:
        reason = f"needs as many completions a prompt; there are {options.num_completions} (evaluate.num_completions)"
        yield SettingError("evaluate.pass_at", options.pass_at, reason)
    if options.num_completions > 1 and not options.pass_at:
        reason = "are asked for, and nothing is estimated from them; set evaluate.pass_at"
        yield SettingError("evaluate.num_completions", options.num_completions, reason)
    if options.num_completions > 1 and options.temperature == 0:
        reason = "are all the same at temperature 0; set evaluate.temperature"
        yield SettingError("evaluate.num_completions", options.num_completions, reason)


def _collection(config: PipelineConfig) -> Iterator[SettingError]:
    if config.prepare.collected is not None and config.prepare.preferences is None:
        reason = "are added to prepare.preferences, and there are none"
        yield SettingError("prepare.collected", config.prepare.collected, reason)
    options = config.collect
    if options is None:
        return
    policy_off = config.why_off(config.collected_policy)
    if policy_off is not None:
        yield SettingError("collect.policy", options.policy, f"the line has no such policy ({policy_off})")
    reward_off = config.why_off("reward")
    if options.labels == "reward" and reward_off is not None:
        yield SettingError("collect.labels", options.labels, f"the line has no reward model ({reward_off})")
    for name in ("url", "base_url"):
        url = options.judge and getattr(options.judge, name)
        if url and not url.startswith(("http://", "https://")):
            yield SettingError(f"collect.judge.{name}", url, "should begin with http:// or https://")


def _section(config: PipelineConfig, name: str) -> TrainingSection:
    section = getattr(config, name)
    assert isinstance(section, TrainingSection)
    return section
