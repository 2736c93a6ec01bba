"""The arguments of `tuneline collect` and `tuneline rounds`. Imports nothing heavy."""

import argparse

LABELS = ("verifier", "reward", "judge", "person")


def add_collect(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("--db", metavar="FILE", help="the store of labels (default: data/labels/NAME.db of the line)")
        return made

    serve = action("serve", "Show the page on which people label, until it is stopped.")
    serve.add_argument("--pairs", metavar="FILE", help="what to label (default: data/collected/pairs.jsonl)")
    serve.add_argument("--port", type=_port, metavar="N", help="on loopback (default: that of before, or a free one)")
    serve.add_argument("--shared", type=_share, metavar="SHARE", help="of the pairs, shown to everyone (default 0.2)")
    action("status", "Show how many pairs are labelled, by whom, and how far annotators agree.")
    export = action("export", "Write the labels as preference data, and the ties beside it.")
    export.add_argument("file", metavar="FILE", help="a file that ends in .jsonl")
    export.add_argument("--one-row-a", choices=("pair", "label"), default="pair", help="default: pair, by majority")
    export.add_argument("--how", choices=LABELS, help="labels of this kind alone")
    export.add_argument("--rounds", type=_rounds, metavar="N[,N...]", help="of the loop (default: all)")


def add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=_count, default=3, metavar="N", help="how many, from the first (default 3)")
    parser.add_argument("--labels", choices=LABELS, help="who labels (default: what collect.labels says)")
    parser.add_argument("--port", type=_port, metavar="N", help="of the page for people (default: that of before)")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds; use 1, 2, 3, ...")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; use 1024 to 65535, or 0 for a free one")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; use 0 to 1")
    return share


def _rounds(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]
