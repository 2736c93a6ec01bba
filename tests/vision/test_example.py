"""The worked example, as a user runs it: the model is better afterwards, by more than chance."""

import pytest

from examples import name_the_colour


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # as a user without a GPU sees it
def test_the_model_looks_after_grpo(tmp_path):
    before, after = name_the_colour.main(str(tmp_path))
    assert after.low > before.high
    assert after.estimate > 0.8


def test_the_colours_are_told_apart_by_the_images():
    rows = name_the_colour.rows(40, seed=3)
    for row in rows:
        mean = [channel / 256 for channel in row["images"][0].resize((1, 1)).getpixel((0, 0))]
        nearest = min(
            name_the_colour.COLOURS,
            key=lambda name: sum((a - b / 256) ** 2 for a, b in zip(mean, name_the_colour.COLOURS[name], strict=True)),
        )
        assert nearest == row["colour"]
    said = [row["completion"][0]["content"] for row in rows]
    assert 0.4 < sum(name_the_colour.names_it([r["completion"] for r in rows], rows["colour"])) / len(said) < 0.9
