"""What the documentation shows of data is what the functions do."""

import doctest
import re
from pathlib import Path

from tuneline.chat_templates import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_every_example_gives_what_it_shows():
    text = PAGE.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "docs/data.md", str(PAGE), 0)
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_every_family_of_chat_templates_is_listed():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    for family in FAMILIES:
        words = set(re.findall(r"[\w.-]+", family.name)) - {"and", "first", "release"}
        assert any(words <= set(re.findall(r"[\w.-]+", row)) for row in rows), family.name
