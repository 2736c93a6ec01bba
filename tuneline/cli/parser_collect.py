"""The arguments of `tuneline collect` and `tuneline rounds`. Imports nothing heavy."""

import argparse

from tuneline.cli.parser_numbers import count, port_or_free, share

LABELS = ("verifier", "reward", "judge", "person")


def add_collect(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("--db", metavar="FILE", help="the store of labels (default: data/labels/NAME.db of the line)")
        return made

    serve = action("serve", "Show the page on which people label, until it is stopped.")
    serve.add_argument("--pairs", metavar="FILE", help="what to label (default: data/collected/pairs.jsonl)")
    serve.add_argument(
        "--port", type=port_or_free, metavar="N", help="on loopback (default: that of before, or a free one)"
    )
    serve.add_argument("--shared", type=share, metavar="SHARE", help="of the pairs, shown to everyone (default 0.2)")
    action("status", "Show how many pairs are labelled, by whom, and how far annotators agree.")
    export = action("export", "Write the labels as preference data, and the ties beside it.")
    export.add_argument("file", metavar="FILE", help="a file that ends in .jsonl")
    export.add_argument("--one-row-a", choices=("pair", "label"), default="pair", help="default: pair, by majority")
    export.add_argument("--how", choices=LABELS, help="labels of this kind alone")
    export.add_argument("--rounds", type=_rounds, metavar="N[,N...]", help="of the loop (default: all)")


def add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=count(1), default=3, metavar="N", help="how many, from the first (default 3)")
    parser.add_argument("--labels", choices=LABELS, help="who labels (default: what collect.labels says)")
    parser.add_argument(
        "--port", type=port_or_free, metavar="N", help="of the page for people (default: that of before)"
    )


def _rounds(text: str) -> list[int]:
    return [count(1)(part) for part in text.split(",")]
