import math
import xml.etree.ElementTree as ElementTree

import pytest

from tuneline.evaluation import figures
from tuneline.evaluation.intervals import Interval, wilson_interval
from tuneline.evaluation.preferences import calibration

HOSTILE = "</text><script>alert(1)</script> $x_1$ &amp; ü"


def all_figures(name="sorting"):
    interval = wilson_interval(3, 7)
    points = {name: (Interval(1, 0.5, 2), Interval(0, -1, 1))}
    curve = {1: (0.0, Interval(0, -1, 1)), 2: (0.2, Interval(0.5, 0, 1))}
    return {
        "accuracy": figures.accuracy_bars({"all": {"sft": interval, name: interval}, name: {"sft": interval}}),
        "reliability": figures.reliability(calibration([1.0, 2.0, 0.0], [0.0, 0.0, 0.0])),
        "histograms": figures.histograms({"sft": [1, 2, 2], name: [3]}, name, "tokens", whole=True),
        "constant": figures.histograms({"sft": [0.5, 0.5]}, "one value", "score"),
        "reward_kl": figures.against_divergence(points, curve, name, name, "score"),
        "without_best_of_n": figures.against_divergence(points, {}, name, name, "score"),
        "two_scales": figures.two_scales((name, [1, 2], [0.5, 2.0]), ("right", [1, 2], [0.4, 0.3]), name),
        "counted": figures.counted([0, 2, 4], [5, 1], name, "tokens", limit=3),
        "curves": figures.curves({"loss": ([1, 2, 3], [3.0, math.nan, 1.0]), name: ([2], [0.5])}, "sft"),
    }


def test_figures_are_the_same_bytes_for_the_same_numbers():
    assert all_figures() == all_figures()


@pytest.mark.parametrize("name", sorted(all_figures()))
def test_figures_are_xml_whose_text_is_text(name):
    svg = all_figures(HOSTILE)[name]
    root = ElementTree.fromstring(svg)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert "text" in tags
    assert "script" not in tags
    assert "<script" not in svg


def test_the_colours_of_ink_stand_in_the_figure_for_pages_to_exchange():
    for svg in all_figures().values():
        assert all(colour in svg for colour in figures.INK.values())
