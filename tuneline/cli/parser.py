"""The commands and flags of `tuneline`, shared by the command line and by `python -m flows`. Imports nothing heavy."""

import argparse
import difflib
import re
from typing import NoReturn

from tuneline.cli.methods import METHODS
from tuneline.cli.parser_collect import add_collect, add_rounds
from tuneline.cli.parser_deployments import add_gpus, add_notify, add_server
from tuneline.cli.parser_lineage import add_lineage_commands
from tuneline.cli.parser_models import add_chat
from tuneline.cli.parser_numbers import amount, count
from tuneline.cli.parser_promotion import add_promotion_commands
from tuneline.cli.parser_report import add_report_command
from tuneline.cli.parser_storage import add_push_after_run, add_storage_commands
from tuneline.cli.parser_sweep import add_sweep

STAGES = ("prepare", "sft", "reward", "dpo", "ppo", "grpo", "evaluate", "collect")
SHELLS = ("bash", "zsh")
DATA_TYPES = (
    "language-modeling",
    "prompt-only",
    "prompt-completion",
    "preference",
    "implicit-preference",
    "unpaired-preference",
)

_EXAMPLES = """\
examples:
  tuneline plan configs/quickstart.yaml
  tuneline run configs/quickstart.yaml
  tuneline run configs/quickstart.yaml --set dpo.training.beta=0.2
  tuneline sweep configs/quickstart.yaml --set dpo.training.beta=0.05,0.1,0.3 --set seed=0,1,2
  tuneline stage dpo --force
  tuneline dpo --model_name_or_path MODEL --dataset_name DATA --output_dir OUT --accelerate_config fsdp2
  tuneline grpo --config grpo.yaml --num_processes 4
"""


class SuggestingParser(argparse.ArgumentParser):
    """An argparse parser that answers an unknown command or flag with the nearest known one."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}{self._suggestion(message)}\nSee `{self.prog} --help`.\n")

    def _suggestion(self, message: str) -> str:
        unknown = re.search(r"unrecognized arguments: (.*)", message)
        if unknown:
            words, known = unknown[1].split(), [flag for action in self._flags() for flag in action.option_strings]
            words = [word.split("=")[0] for word in words if word.startswith("-")]
        else:
            invalid = re.search(r"invalid choice: '?([^']*)'? \(choose from (.*)\)", message)
            if not invalid:
                return ""
            words, known = [invalid[1]], re.findall(r"[\w-]+", invalid[2])
        near = [match for word in words for match in difflib.get_close_matches(word, known, n=1, cutoff=0.5)]
        return f". Did you mean {' '.join(near)}?" if near else ""

    def _flags(self) -> list[argparse.Action]:
        """Flags of this parser and of its commands: the top parser is the one that meets what a command left over."""
        flags = list(self._actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags += [flag for command in action.choices.values() for flag in command._actions]
        return flags


def make_parser(prog: str = "tuneline", version: str = "") -> argparse.ArgumentParser:
    """The parser of all commands; what it returns has `command` and that command's arguments."""
    parser = SuggestingParser(
        prog=prog,
        description="Align language models: prepare, SFT, reward model, DPO, PPO, GRPO and evaluation, as one line.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tuneline {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    run = command("run", "Run the line that a config describes; what is up to date is not run again.")
    _add_config(run)
    run.add_argument("--force", action="store_true", help="run every stage, up to date or not")
    run.add_argument("--parallel", action="store_true", help="train at the same time what can, such as reward and dpo")
    _add_retries(run)
    add_push_after_run(run)

    plan = command("plan", "Show what a run would do, without doing it: stages, reasons, steps, times.")
    _add_config(plan)

    command("status", "Show what is up to date, what runs now, and why a stage would run again.")

    stage = command("stage", "Run one stage with the settings of the last run.")
    stage.add_argument("name", choices=STAGES, metavar="NAME", help=", ".join(STAGES))
    stage.add_argument("--force", action="store_true", help="run it even if it is up to date")
    _add_retries(stage)
    add_push_after_run(stage)

    add_sweep(command, _add_config, _add_retries)
    rounds = command("rounds", "Collect preferences from the newest policy, learn from them, and so on in rounds.")
    _add_config(rounds)
    add_rounds(rounds)
    _add_retries(rounds)
    add_collect(command("collect", "Label collected pairs on a local page, see how far that is, export the labels."))

    add_server(command("server", "Start Prefect's server for schedules, on loopback and behind a password."))
    add_gpus(command("gpus", "Make or change the limit on Prefect's server that GPUs are shared by."))
    add_notify(command("notify", "Post to an address when a run fails, dies, or makes a model that is refused."))
    add_report_command(command)
    add_promotion_commands(command)
    add_lineage_commands(command)
    add_storage_commands(command)
    command("env", "Print versions, processors, memory and where the checkout is.")
    _add_convert(command("convert", "Write a data set as another of the types that trainers read."))
    _add_merge(command("merge", "Write a saved adapter and its base as one model."))
    add_chat(command("chat", "Talk with models of the line, or any other, in the terminal."))
    completion = command("completion", "Print the completion of commands and flags for a shell.")
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" or ".join(SHELLS))
    commands.add_parser("vllm-serve", help="Serve a model for training with vLLM; takes vLLM's flags.", add_help=False)
    for name, method in METHODS.items():
        # its options need the libraries, so `tuneline.cli.launch` reads them
        commands.add_parser(name, help=method.help, add_help=False)
    return parser


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a file, a folder, or a name on a hub")
    parser.add_argument("target", metavar="TARGET", help="a file that ends in .jsonl, .parquet or .csv")
    parser.add_argument("--to", required=True, choices=DATA_TYPES, metavar="TYPE", help=", ".join(DATA_TYPES))
    parser.add_argument("--split", default="train", metavar="NAME", help="the split of the source (default train)")
    parser.add_argument("--force", action="store_true", help="write over a target that is there")


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="the folder that a trainer saved to")
    parser.add_argument("output", metavar="OUTPUT", help="a folder that is not there yet")
    parser.add_argument("--base", metavar="MODEL", help="the model below it (default: the one that the adapter names)")
    parser.add_argument("--dtype", default="auto", metavar="TYPE", help="such as bfloat16 (default: the base's)")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a pipeline's YAML, such as configs/quickstart.yaml")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="a.b=c",
        type=_override,
        help="change one setting (may be repeated), such as --set dpo.training.beta=0.2",
    )


def _add_retries(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retries", type=count(), default=2, metavar="N", help="tries after a failed one (default 2)")
    parser.add_argument(
        "--retry-delay",
        type=amount,
        default=10.0,
        metavar="SECONDS",
        help="wait before the first retry, doubled before each further one (default 10)",
    )


def _override(text: str) -> str:
    if not re.match(r"[A-Za-z_][\w.\-]*=", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form section.name=value")
    return text
