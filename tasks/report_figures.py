"""The drawings of a report: in the page's colours, described in words, without anything that reaches outside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup, escape

from tasks.report_parts import Curve, DataSummary, read_curves
from tasks.report_text import Limits, number
from tuneline.evaluation import figures
from tuneline.logging import get_logger

logger = get_logger(__name__)

# What a reader looks at first; all others are in curve.csv.
CURVES = {
    "sft": ("loss", "mean_token_accuracy", "entropy"),
    "reward": ("loss", "accuracy", "margin"),
    "dpo": ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"),
    "ppo": (
        "reward",
        "objective/kl",
        "objective/rlhf_reward",
        "completions/mean_length",
        "policy/entropy_avg",
        "loss/value_avg",
    ),
    "grpo": ("reward", "reward_std", "completions/mean_length", "kl", "entropy", "frac_reward_zero_std"),
}
VERIFIED = "rewards/verifier/mean"
DIVERGENCE = ("objective/kl", "kl")
LENGTH = "completions/mean_length"
# By name of the file that evaluate leaves: in which part of the page it stands, and what it shows.
STORED = {
    "accuracy": ("evaluation", "Accuracy by task and policy, with intervals"),
    "reliability": ("evaluation", "Reward model: how often it is right against how sure it is"),
    "pair_scores": ("evaluation", "Reward model: histogram of its scores of chosen and rejected answers"),
    "policy_scores": ("evaluation", "Reward model: histogram of its scores of each policy's answers"),
    "reward_kl": ("tradeoffs", "Mean score of the reward model against the divergence from the baseline, by policy"),
    "accuracy_kl": ("tradeoffs", "Accuracy against the divergence from the baseline, by policy"),
    "lengths": ("tradeoffs", "Histogram of completion lengths in tokens, by policy"),
}
_SVG_TAGS = {"svg", "g", "path", "defs", "style", "text", "tspan", "use", "rect", "clipPath"}


class Drawer:
    """Draws the figures of one page: each has identifiers of its own, and too large ones are left out and counted."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self._root = root
        self._limits = limits
        self._num_drawn = 0

    def lengths(self, data: DataSummary | None) -> list[Markup]:
        """A histogram of token lengths for each file to train or test on."""
        drawn = []
        for name, lengths in (data.lengths if data else {}).items():
            histogram = lengths.get("histogram")
            if histogram and not name.endswith("/eval"):
                limit, title = lengths.get("max_length"), f"{name}: tokens a row"
                svg = figures.counted(histogram["edges"], histogram["counts"], title, "tokens", limit)
                said = f"Histogram of tokens a row in {name}: median {number(lengths.get('median'))}"
                drawn += self._drawn(svg, f"{said}, longest {number(lengths.get('max'))}, limit {number(limit)}")
        return drawn

    def curves(self, stage: str) -> list[Markup]:
        """What a stage's training is followed by."""
        curves = {curve.name: curve for curve in read_curves(self._root, stage)}
        drawn = []
        if "reward" in curves and VERIFIED in curves:  # they go apart where the policy deceives
            learned, right = (curves.pop(name).series["train"] for name in ("reward", VERIFIED))
            sides = ("reward", *learned), ("share that the verifier finds right", *right)
            title = "What is rewarded, and what is right"
            said = f"{title}: reward {_ends(learned)}; share right {_ends(right)}"
            drawn += self._drawn(figures.two_scales(*sides, title), said)
        for name in CURVES[stage]:
            if name in curves:
                drawn += self._drawn(figures.curves(curves[name].series, name), _described(curves[name]))
        return drawn

    def tradeoffs(self, stages: tuple[str, ...] = ("ppo", "grpo")) -> list[Markup]:
        """Reward and length over divergence in training, for the online stages that measure a divergence."""
        drawn = []
        for stage in stages:
            curves = {curve.name: curve for curve in read_curves(self._root, stage)}
            kl = next((curves[name] for name in DIVERGENCE if name in curves), None)
            for name in ("reward", LENGTH):
                if kl is None or name not in curves:
                    continue
                points = _joined(kl, curves[name])
                title = f"{stage}: {name} against KL in training"
                if len(points[0]) > 1:
                    said = f"{title}: KL {_ends(points, of=0)}, {name} {_ends(points)}"
                    svg = figures.trajectory(*points, title, "KL from the reference, nats a completion", name)
                    drawn += self._drawn(svg, said)
        return drawn

    def stored(self, part: str) -> list[Markup]:
        """Those that evaluate has left, for one part of the page."""
        drawn = []
        for name, (place, said) in STORED.items():
            path = self._root / "reports" / "evaluate" / "files" / "figures" / f"{name}.svg"
            if place != part or not path.is_file():
                continue
            try:
                drawn += self._drawn(path.read_text(encoding="utf-8"), f"{said}; the numbers are in the tables")
            except (OSError, ValueError) as error:
                self._limits.left_out["figures that are not what they should be"] += 1
                logger.warning("%s is left out of the report: it has %s", path, error)
        return drawn

    def _drawn(self, svg: str, said: str) -> list[Markup]:
        if len(svg) > self._limits.num_figure_characters:
            self._limits.left_out["figures that are too large"] += 1
            return []
        self._num_drawn += 1
        return [themed(svg, said, f"f{self._num_drawn}-")]


def themed(svg: str, said: str = "", prefix: str = "") -> Markup:
    """A figure of `tuneline.evaluation.figures` as part of the page, in the page's colours.

    Args:
        said: the figure in words, for those who cannot see it.
        prefix: makes the identifiers in it differ from those of other figures.

    Raises:
        ValueError: it is not the drawing that it should be: it is no XML, or it has scripts or outside references.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    _check(svg)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # numbered alike in every figure, and nothing refers to them
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href=", "href=")  # HTML needs no name spaces
    if prefix:
        svg = re.sub(r' id="', f' id="{prefix}', svg)
        svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}", svg)
    for name, colour in figures.INK.items():
        svg = svg.replace(colour, f"var(--{name})")
    for i, colour in enumerate(figures.SERIES):
        svg = svg.replace(colour, f"var(--series-{i})")
    label = f' role="img" aria-label="{escape(said)}"' if said else ""
    return Markup(svg.replace("<svg", f"<svg{label}", 1))


def _check(svg: str) -> None:
    try:
        elements = list(ElementTree.fromstring(svg).iter())
    except ElementTree.ParseError as error:
        raise ValueError(f"no XML ({error})") from None
    for element in elements:
        tag = element.tag.rpartition("}")[2]
        if tag not in _SVG_TAGS:
            raise ValueError(f"an element <{tag}>")
        for name, value in element.attrib.items():
            name = name.rpartition("}")[2].lower()
            if name.startswith("on") or (name == "href" and not value.startswith("#")):
                raise ValueError(f"an attribute {name}")
        styled = [*element.attrib.values(), (tag == "style" and element.text) or ""]
        if "url(" in re.sub(r"url\(#", "", "".join(styled)) or "@import" in "".join(styled):
            raise ValueError("an outside reference")


Points = tuple[list[float], list[float]]


def _described(curve: Curve) -> str:
    return f"{curve.name} by step: " + "; ".join(f"{kind} {_ends(points)}" for kind, points in curve.series.items())


def _ends(points: Any, of: int = 1) -> str:
    """How a series begins and ends."""
    steps, values = points[0], points[of]
    if len(values) == 1:
        return f"{number(values[0])} at {number(steps[0])}"
    return (
        f"from {number(values[0])} to {number(values[-1])}, {number(min(values))} to {number(max(values))} in between"
    )


def _joined(x: Curve, y: Curve) -> Points:
    """The points of both curves where they share a step."""
    of_x, of_y = (dict(zip(*curve.series.get("train", ([], [])), strict=True)) for curve in (x, y))
    steps = [step for step in of_x if step in of_y]
    return [of_x[step] for step in steps], [of_y[step] for step in steps]
