"""`tuneline sft|reward|dpo|...` in each process of a launch: options to a trainer, train, save.

Started by `tuneline.cli.launch`, or by hand as `accelerate launch -m tuneline.cli.training sft --config x.yaml`.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import tuneline
from tuneline.cli.methods import METHODS
from tuneline.cli.model_config import ModelConfig, get_peft_config, get_quantization_config
from tuneline.cli.trl_parser import TrlParser
from tuneline.data.mixtures import DatasetConfig, DatasetMixtureConfig, ScriptArguments, get_dataset, load_part
from tuneline.errors import ConfigError, TunelineError
from tuneline.logging import get_logger
from tuneline.rewards.choosing import get_reward
from tuneline.trainers.older_names import options_today

logger = get_logger(__name__)

# TRL's command line makes this reward with these values, and takes none.
_REWARD_OPTIONS = {"get_soft_overlong_punishment": {"max_completion_len": 1280, "soft_punish_cache": 256}}

# Kind of model for peft, which then trains the new head whole.
_KEEPS_A_NEW_HEAD = {"reward": "SEQ_CLS", "prm": "TOKEN_CLS"}


@dataclass
class OnlineScriptArguments(ScriptArguments):
    """`ScriptArguments` of the methods that learn from rewards."""

    reward_model_name_or_path: str | None = field(default=None, metadata={"help": "Name or folder of a reward model."})
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Rewards: names of tuneline.rewards, such as accuracy_reward, or dotted paths of yours."},
    )


@dataclass
class MixtureArguments(DatasetMixtureConfig):
    """A mixture whose `seed` is the run's."""

    seed: int = field(default=42, init=False)


def make_training_parser(method: str) -> TrlParser:
    """All options of a method."""
    chosen = METHODS[method]
    script = OnlineScriptArguments if chosen.takes_rewards else ScriptArguments
    types = (script, getattr(tuneline, chosen.config), ModelConfig, MixtureArguments)
    return TrlParser(types, prog=f"tuneline {method}", allow_abbrev=False)


def with_names_of_today(method: str, words: list[str]) -> list[str]:
    """The words of a command line, with older flags by their names of today."""
    today = options_today(getattr(tuneline, METHODS[method].config))
    renamed = []
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in today:
            logger.warning("%s is --%s today", flag, today[name])
            word = f"--{today[name]}{equals}{value}"
        renamed.append(word)
    return renamed


def train(method: str, words: list[str]) -> None:
    """Train by a method with the options of a command line, and save the model to `output_dir`.

    Raises:
        TunelineError: before any training, an option that does not hold or data that cannot be read.
    """
    parser = make_training_parser(method)
    # keys of the file for `accelerate launch` were read by it; what nothing reads was refused there
    script, args, model, mixture = parser.parse_args_and_config(
        with_names_of_today(method, words), fail_with_unknown_args=False
    )
    mixture.seed = args.seed
    trainer = make_trainer(method, script, args, model, mixture)
    if script.ignore_bias_buffers:
        ignored = [name for name, buffer in trainer.model.named_buffers() if buffer.dtype == torch.bool]
        trainer.model._ddp_params_and_buffers_to_ignore = ignored
    trainer.train(resume_from_checkpoint=_checkpoint(args.resume_from_checkpoint))
    trainer.save_model(args.output_dir)
    logger.info("%s: saved to %s after %s steps", method, args.output_dir, trainer.state.global_step)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    trainer.end()


def make_trainer(
    method: str, script: ScriptArguments, args: Any, model: ModelConfig, mixture: DatasetMixtureConfig
) -> Any:
    """The trainer of a method, with its model, data and rewards."""
    chosen = METHODS[method]
    name = model.model_name_or_path or getattr(args, "sft_model_path", None)
    if name is None:
        raise ConfigError(f"tuneline {method} needs a model; give --model_name_or_path.")
    args.model_init_kwargs = _loading(model) | (args.model_init_kwargs or {})
    train_dataset, eval_dataset = _rows(script, mixture, with_test=args.eval_strategy != "no")
    model.lora_task_type = _KEEPS_A_NEW_HEAD.get(method, model.lora_task_type)
    given: dict[str, Any] = {
        "model": name,
        "args": args,
        "train_dataset": train_dataset,
        "eval_dataset": eval_dataset,
        "peft_config": get_peft_config(model),
    }
    if (quantization := get_quantization_config(model)) is not None:
        given["quantization_config"] = quantization
    if isinstance(script, OnlineScriptArguments):
        given |= _rewards(method, script, args)
    return getattr(tuneline, chosen.trainer)(**given)


def _loading(model: ModelConfig) -> dict[str, Any]:
    attention = {} if model.attn_implementation is None else {"attn_implementation": model.attn_implementation}
    dtype = {} if model.dtype is None else {"dtype": model.dtype}
    return {"revision": model.model_revision, **dtype, **attention}


def _rows(script: ScriptArguments, mixture: DatasetMixtureConfig, *, with_test: bool) -> tuple[Any, Any]:
    """Rows to train and, where asked for, to evaluate on."""
    splits = (script.dataset_train_split, script.dataset_test_split)
    if mixture.datasets:
        if script.dataset_name:
            logger.warning("`datasets` lists a mixture, so dataset_name=%s is not read", script.dataset_name)
        rows = get_dataset(mixture)
        if with_test and splits[1] not in rows:
            raise ConfigError(
                f"eval_strategy asks for evaluation, and the mixture has no split {splits[1]!r}; set test_split_size."
            )
        return rows[splits[0]], rows[splits[1]] if with_test else None
    if not script.dataset_name:
        raise ConfigError("no data: give --dataset_name, or list `datasets` in the file that --config names.")
    if with_test and Path(script.dataset_name).is_file():
        raise ConfigError(
            f"eval_strategy asks for evaluation, and {script.dataset_name} is one file; list it under `datasets` with "
            "test_split_size, or name a folder with both splits."
        )
    train, test = (
        load_part(
            DatasetConfig(script.dataset_name, name=script.dataset_config, split=split),
            streaming=script.dataset_streaming,
        )
        if wanted
        else None
        for split, wanted in zip(splits, (True, with_test), strict=True)
    )
    return train, test


def _rewards(method: str, script: OnlineScriptArguments, args: Any) -> dict[str, Any]:
    """The trainer's arguments for what completions are rewarded by."""
    sys.path.insert(0, os.getcwd())  # for functions of the user's, as where a script is run
    functions: list[Any] = [get_reward(name, **_REWARD_OPTIONS.get(name, {})) for name in script.reward_funcs or []]
    model = script.reward_model_name_or_path or getattr(args, "reward_model_path", None)
    if not functions and model is None:
        raise ConfigError(f"tuneline {method} needs a reward; give --reward_funcs or --reward_model_name_or_path.")
    if method == "ppo":  # its value function may begin from the reward model
        return {"reward_model": model, "reward_funcs": functions or None}
    return {"reward_funcs": functions if model is None else [model, *functions]}


def _checkpoint(given: str | None) -> str | bool | None:
    """`true` is the last checkpoint of the output folder."""
    return given if given is None else {"true": True, "false": False}.get(given.lower(), given)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 for a run that ended, 2 for what the user can mend."""
    method, *words = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("tuneline").setLevel(logging.INFO)
    try:
        train(method, words)
    except TunelineError as error:
        print(f"tuneline: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
