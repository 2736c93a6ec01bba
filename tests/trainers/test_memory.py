"""Freed memory goes back to the system."""

import sys

import pytest
import torch

from tuneline.memory import give_back_memory


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_was_freed_is_given_back():
    # pieces too small to be mapped one by one, with one at the end that keeps the heap from shrinking by itself
    pieces = [torch.ones(2**13) for _ in range(4000)]
    last = torch.ones(2**13)
    before = resident()
    del pieces
    give_back_memory()
    assert before - resident() > 80 * 2**20
    assert last.sum() == 2**13
