"""The arguments of `tuneline server`, `gpus` and `notify`."""

import argparse


def add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=_port, default=4200, metavar="PORT", help="where it listens (default 4200)")
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
        type=_count,
        metavar="N",
        help="how many slots there are; without it, show what is taken",
    )


def add_notify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="where events are posted, as JSON that Slack reads too")
    parser.add_argument("--off", action="store_true", help="take webhook and automations away again")
    parser.add_argument(
        "--dead-after",
        type=float,
        metavar="SECONDS",
        help="a run without a sign of life for so long is marked as crashed (default: three heartbeats, 540)",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; use one from 1024 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GPUs; use 1, 2, ...")
    return int(text)
