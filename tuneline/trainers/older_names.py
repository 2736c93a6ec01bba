"""Names of options and arguments that TRL and transformers have changed: taken as before, and said once in the log.

The two generations of PPO are told apart in `tuneline.classic.dispatch`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from tuneline.errors import ConfigError
from tuneline.logging import get_logger

logger = get_logger(__name__)

Configuration = TypeVar("Configuration", bound=type)

# Options of configurations. Only where the class has the name of today and not the older one.
OPTIONS_TODAY = {
    "evaluation_strategy": "eval_strategy",
    "max_seq_length": "max_length",
    "use_liger": "use_liger_kernel",
    "use_liger_loss": "use_liger_kernel",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "warmup_ratio": "warmup_steps",  # below 1 it is a share of the run
}
ARGUMENTS_TODAY = {"tokenizer": "processing_class"}

# What trainers took themselves before their configurations did (TRL up to 0.12), by the names of then.
ONCE_ARGUMENTS = (
    "beta",
    "dataset_kwargs",
    "dataset_num_proc",
    "dataset_text_field",
    "disable_dropout",
    "eval_packing",
    "label_smoothing",
    "loss_type",
    "max_length",
    "max_seq_length",
    "model_init_kwargs",
    "neftune_noise_alpha",
    "packing",
    "precompute_ref_log_probs",
    "truncation_mode",
)

_said: set[str] = set()


def takes_older_options(config: Configuration) -> Configuration:
    """A configuration that takes its options by their older names too; `fields` and the signature have those of today.

    Stands above `@dataclass`.
    """
    own_init: Callable[..., None] = config.__init__  # type: ignore[misc]
    today = options_today(config)

    @functools.wraps(own_init)
    def init(self: Any, *args: Any, **options: Any) -> None:
        own_init(self, *args, **_renamed(config.__name__, options, today))

    config.__init__ = init  # type: ignore[misc]
    return config


def options_today(config: type) -> dict[str, str]:
    """The older names that a configuration takes, each with that of today."""
    own = {one.name for one in fields(config)}
    return {older: today for older, today in OPTIONS_TODAY.items() if today in own and older not in own}


def taking_older_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor of a trainer, which then takes its arguments by their older names, and options of its
    configuration that were arguments once.

    Raises (when called):
        ConfigError: an option given to both the trainer and its configuration, with different values.
    """
    parameters = inspect.signature(init).parameters

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **arguments: Any) -> None:
        trainer = type(self).__name__
        today = {older: now for older, now in ARGUMENTS_TODAY.items() if now in parameters and older not in parameters}
        arguments = _renamed(trainer, arguments, today)
        options = {
            name: arguments.pop(name)
            for name in list(arguments)
            if name in ONCE_ARGUMENTS and name not in parameters and _has_option(self, name)
        }
        if options:
            bound = inspect.signature(init).bind_partial(self, *args, **arguments)
            bound.arguments["args"] = _with_options(self, bound.arguments, options)
            args, arguments = bound.args[1:], bound.kwargs
        init(self, *args, **arguments)

    return wrapped


def _has_option(trainer: Any, name: str) -> bool:
    config = getattr(trainer, "config_class", None)  # only a base has none
    return config is not None and name in {one.name for one in fields(config)} | set(options_today(config))


def _with_options(trainer: Any, given: Mapping[str, Any], options: dict[str, Any]) -> Any:
    """The configuration with options that its trainer was given."""
    config, where = trainer.config_class, type(trainer).__name__
    _say_once(where, dict.fromkeys(options, f"an option of {config.__name__}"))
    options = _renamed(config.__name__, options, options_today(config))
    args = given.get("args")
    if args is None:
        model = given.get("model")
        name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "name_or_path", "")
        folder = str(name).rstrip("/").rpartition("/")[2] or type(model).__name__
        return config(output_dir=f"{folder}-{config.__name__.removesuffix('Config')}", **options)
    own = {one.name for one in fields(config)}
    settings = {one.name: getattr(args, one.name) for one in fields(args) if one.init and one.name in own}
    defaults = {one.name: one.default for one in fields(config)}
    for name, value in options.items():
        if name in settings and settings[name] not in (defaults[name], value):
            raise ConfigError(
                f"{where}: {name}={value!r}, and {name}={settings[name]!r} in its configuration; give it to the "
                "configuration alone."
            )
    return config(**{**settings, **options})


def _renamed(where: str, given: dict[str, Any], today: Mapping[str, str]) -> dict[str, Any]:
    older = [name for name in given if name in today]
    if twice := [name for name in older if today[name] in given]:
        raise ConfigError(f"{where}: {twice[0]} is {today[twice[0]]} today, and both are given; leave out {twice[0]}.")
    _say_once(where, {name: today[name] for name in older})
    return {today.get(name, name): value for name, value in given.items()}


def _say_once(where: str, today: Mapping[str, str]) -> None:
    news = [name for name in today if f"{where}.{name}" not in _said]
    if news:
        _said.update(f"{where}.{name}" for name in news)
        logger.warning("%s: %s", where, _translated(news, today))


def _translated(names: Iterable[str], today: Mapping[str, str]) -> str:
    return "; ".join(f"{name} is {today[name]}" + ("" if " " in today[name] else " today") for name in names)
