"""What the documentation shows of the parts is what they do."""

import doctest
import re
from pathlib import Path

PARTS = Path(__file__).parents[2] / "docs" / "parts.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_example_of_the_parts_gives_what_it_shows():
    text = PARTS.read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python")
    # from top to bottom, each with the names of those above; blank lines keep the line numbers of the page
    names: dict = {}
    runner = doctest.DocTestRunner()
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        test = doctest.DocTestParser().get_doctest(block[1], names, "docs/parts.md", str(PARTS), line)
        assert test.examples, f"the block in line {line} of {PARTS} shows nothing"
        runner.run(test, clear_globs=False)
        names = test.globs
    assert runner.summarize(verbose=False).failed == 0
