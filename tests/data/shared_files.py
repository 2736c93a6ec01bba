"""Where real data lie, if they do."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "shared" / "data"


def real_data(name: str) -> str:
    """The path of a real data set; the test that asks is skipped where there is none."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{name} is not in {FOLDER}")
    return str(path)
