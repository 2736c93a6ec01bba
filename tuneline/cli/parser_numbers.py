"""Numbers on the command line: each is checked where it is read. Imports nothing heavy."""

import argparse
import math
from collections.abc import Callable


def count(least: int = 0) -> Callable[[str], int]:
    """A whole number of at least so many."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a count; use {least}, {least + 1}, {least + 2}, ...")
        return int(text)

    return read


def port(text: str) -> int:
    """A port to listen on."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; use one from 1024 to 65535")
    return int(text)


def port_or_free(text: str) -> int:
    """A port to listen on, or 0 for whichever is free."""
    return 0 if text == "0" else port(text)


def amount(text: str, most: float = math.inf) -> float:
    """A number of at least 0, such as of seconds; neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount; use a number from 0 on")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        return amount(text, most=1.0)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; use 0 to 1") from None
