"""The arguments of `tuneline server`, `gpus` and `notify`. Imports nothing heavy."""

import argparse

from tuneline.cli.parser_numbers import amount, count, port


def add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=port, default=4200, metavar="PORT", help="where it listens (default 4200)")
    parser.add_argument(
        "--env",
        action="store_true",
        help="start nothing, and print the shell commands that make a shell its client: "
        'eval "$(tuneline server --env)"',
    )


def add_gpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "count",
        nargs="?",
        type=count(1),
        metavar="N",
        help="how many slots there are; without it, show what is taken",
    )


def add_notify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="where events are posted, as JSON that Slack reads too")
    parser.add_argument("--off", action="store_true", help="take webhook and automations away again")
    parser.add_argument(
        "--dead-after",
        type=amount,
        metavar="SECONDS",
        help="a run without a sign of life for so long is marked as crashed (default: three heartbeats, 540)",
    )
