import re

import pytest

from tasks.report_figures import themed
from tasks.report_parts import read_curves
from tasks.report_text import Limits
from tuneline.evaluation import figures
from tuneline.evaluation.intervals import Interval


def place_of(svg, name):
    """Where a text stands, in points."""
    found = re.search(rf"<text [^>]*translate\(([\d.]+) ([\d.]+)\)[^>]*>{name}</text>", svg) or re.search(
        rf'<text [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>{name}</text>', svg
    )
    assert found, name
    return float(found[1]), float(found[2])


def test_names_of_points_that_lie_close_do_not_cover_each_other():
    def interval(value):
        return Interval(value, value - 0.05, value + 0.05)

    policies = {"sft": (0.0, 0.0), "dpo": (0.58, 3.01), "ppo": (0.39, 2.84), "grpo": (0.69, 2.99)}
    points = {name: (interval(x), interval(y)) for name, (x, y) in policies.items()}
    svg = figures.against_divergence(points, {}, "sft", "title", "score")
    places = [place_of(svg, name) for name in policies]
    for i, (x, y) in enumerate(places):
        assert all(abs(x - a) > 20 or abs(y - b) > 9 for a, b in places[i + 1 :])


def test_a_trajectory_names_its_ends():
    svg = figures.trajectory([0.0, 0.4, 0.5], [1.0, 3.0, 2.5], "title", "KL", "reward")
    (first, _), (last, _) = place_of(svg, "first"), place_of(svg, "last")
    assert first < last


def test_a_figure_is_described_and_has_identifiers_of_its_own():
    svg = figures.curves({"loss": ([1, 2], [3.0, 1.0])}, "loss")
    one, other = (themed(svg, 'loss "falls" <b>', prefix) for prefix in ("f1-", "f2-"))
    assert 'role="img" aria-label="loss &#34;falls&#34; &lt;b&gt;"' in one
    identifiers = [set(re.findall(r' id="([^"]+)"', figure)) for figure in (one, other)]
    assert identifiers[0]
    assert not identifiers[0] & identifiers[1]
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', one)) <= identifiers[0]
    assert "://" not in one


@pytest.mark.parametrize("columns", ["", "step,train/loss\n", "step,train/loss\n1,nan\n2,inf\n"])
def test_a_curve_without_a_point_is_no_curve(tmp_path, columns):
    path = tmp_path / "reports" / "sft" / "curve.csv"
    path.parent.mkdir(parents=True)
    path.write_text(columns)
    assert read_curves(tmp_path, "sft") == []
    assert Limits().left_out == {}
