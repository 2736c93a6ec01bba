"""`tuneline completion bash|zsh`: a script that completes commands, flags, names of stages and file names."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from tuneline.cli.accelerate_configs import NAMED
from tuneline.cli.methods import METHODS
from tuneline.cli.training import make_training_parser

_SCRIPT = """\
# Completion of tuneline. Write it to a file once, and source that: making it takes seconds.
_tuneline() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=""
    if [[ $COMP_CWORD -eq 1 ]]; then
        words="{commands}"
    elif [[ $before == --accelerate_config ]]; then
        words="{configs}"
    else
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
        [[ $word != -* && $words == -* ]] && words=""
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [[ ${{#COMPREPLY[@]}} -eq 0 && $word != -* ]] && COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _tuneline tuneline
"""


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for a shell; zsh runs that of bash.

    Args:
        parser: of all commands.
    """
    words = dict(_words(parser))
    cases = "\n".join(f'            {command}) words="{" ".join(found)}" ;;' for command, found in words.items())
    script = _SCRIPT.format(commands=" ".join(words), configs=" ".join(NAMED), cases=cases)
    return script if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{script}"


def _words(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    """Each command with its flags, or with the names that it takes."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, subparser in action.choices.items():
                if command in METHODS:
                    flags = sorted(_flags(make_training_parser(command)))
                    yield command, ["--config", "--accelerate_config", "--num_processes", *flags]
                else:
                    names = [name for one in subparser._actions if not one.option_strings for name in one.choices or ()]
                    yield command, names or sorted(_flags(subparser))


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    # the second spelling with dashes would double every list
    return {name for one in parser._actions for name in one.option_strings[:1] if name.startswith("--")}
