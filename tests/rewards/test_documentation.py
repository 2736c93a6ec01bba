"""The examples of the documentation run as they stand."""

import doctest
import re
from pathlib import Path

from tuneline.rewards import calling

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"


def test_the_examples_of_the_page_run_in_order():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)


def test_the_example_of_the_module_runs():
    assert doctest.testmod(calling).failed == 0
