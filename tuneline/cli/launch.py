"""`tuneline sft|reward|dpo|...`: tell the options of training from those of the launch, and start the processes.

What the trainer does not read goes to `accelerate launch`, from the command line and from the file, as in TRL. A run
of one process without such options runs in this one.
"""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from accelerate.commands.config.config_args import default_config_file
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from tuneline.cli.accelerate_configs import accelerate_config_file
from tuneline.cli.training import main as train_here
from tuneline.cli.training import make_training_parser, with_names_of_today
from tuneline.cli.trl_parser import TrlParser
from tuneline.errors import ConfigError


def launch(method: str, words: list[str]) -> int:
    """Train as the words of a command line say; gives back the exit code.

    Raises:
        ConfigError: an option that neither the trainer nor `accelerate launch` reads.
    """
    words = with_names_of_today(method, words)
    parser = make_training_parser(method)
    of_file, of_line = parser.words_left_over(words)
    of_launch = [*of_file, *of_line]
    check_launch_words(of_launch, parser)
    num_gpus = torch.cuda.device_count()
    if not of_launch and num_gpus <= 1 and not os.path.isfile(default_config_file):
        return train_here([method, *words])
    with tempfile.TemporaryDirectory(prefix="tuneline-") as folder:
        of_launch = _with_config_file(of_launch, Path(folder), num_gpus)
        if has_processes_without_gpus(of_launch, num_gpus):
            of_launch.append("--multi_gpu")
            os.environ["ACCELERATE_USE_CPU"] = "true"
        own = without(words, of_line)
        arguments = launch_command_parser().parse_args([*of_launch, "-m", "tuneline.cli.training", method, *own])
        try:
            launch_command(arguments)
        except subprocess.CalledProcessError as error:
            return error.returncode
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            print(f"tuneline: process {rank} ended with exit code {failure.exitcode}.", file=sys.stderr)
            return failure.exitcode
    return 0


def check_launch_words(words: list[str], parser: TrlParser) -> None:
    """Raises `ConfigError` for a flag that `accelerate launch` does not know, with the nearest that one of both
    knows."""
    of_launch = {name for action in launch_command_parser()._actions for name in action.option_strings}
    known = {*of_launch, "--accelerate_config"}
    of_training = {name for action in parser._actions for name in action.option_strings}
    flags = [word.partition("=")[0] for word in words if word.startswith("-") and not _is_number(word)]
    unknown = [flag for flag in flags if flag not in known]
    if words and not flags:
        unknown = words
    if unknown:
        names = [name for name in [*of_training, *known] if name.startswith("--")]
        near = {flag: difflib.get_close_matches(flag.replace("-", "_").replace("__", "--", 1), names, n=1, cutoff=0.5)
                for flag in unknown}  # fmt: skip
        told = [f"{flag} (did you mean {found[0]}?)" if found else flag for flag, found in near.items()]
        raise ConfigError(f"nothing reads {', '.join(told)}; `{parser.prog} --help` lists what there is.")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _with_config_file(words: list[str], folder: Path, num_gpus: int) -> list[str]:
    """`--accelerate_config NAME` as `--config_file PATH`."""
    words = [part for word in words for part in _parted(word)]
    if "--accelerate_config" not in words:
        return words
    at = words.index("--accelerate_config")
    if at + 1 == len(words):
        raise ConfigError("--accelerate_config names nothing; give a name such as fsdp2, or a path.")
    has_bf16 = num_gpus > 0 and torch.cuda.is_bf16_supported()
    path = accelerate_config_file(words[at + 1], folder, num_gpus, has_bf16)
    return ["--config_file", str(path), *words[:at], *words[at + 2 :]]


def _parted(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--accelerate_config=") else [word]


def has_processes_without_gpus(words: list[str], num_gpus: int) -> bool:
    """Whether several processes are asked for where there is no GPU: Accelerate would start one, or several that know
    nothing of each other."""
    counts = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("--num_processes", "--num-processes")]
    counts += [word.partition("=")[2] for word in words if word.startswith(("--num_processes=", "--num-processes="))]
    return not num_gpus and "--config_file" not in words and "--multi_gpu" not in words and counts not in ([], ["1"])


def without(words: list[str], left_over: list[str]) -> list[str]:
    """The words less those that were left over, which stand in the same order."""
    rest, out = list(left_over), []
    for word in words:
        if rest and word == rest[0]:
            del rest[0]
        else:
            out.append(word)
    return out
