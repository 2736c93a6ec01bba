"""Figures of an evaluation as SVG: the same bytes for the same numbers, legible on a phone, directly labelled.

The colours of the series are Okabe and Ito's, which colour-blind readers tell apart. All others stand in `INK`, so that
a page may exchange them for its own; text stays text. Needs matplotlib, which comes with `tuneline[pipeline]`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tuneline.evaluation.intervals import Interval
from tuneline.evaluation.preferences import Calibration

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
INK = {"text": "#24292f", "muted": "#6e7781", "grid": "#d8dee4", "background": "#ffffff"}
_WIDTH = 4.8  # inches; 460 px on a page
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tuneline",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": INK["text"],
    "axes.edgecolor": INK["grid"],
    "axes.labelcolor": INK["muted"],
    "axes.labelsize": 9,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": INK["grid"],
    "grid.linewidth": 0.6,
    "xtick.color": INK["muted"],
    "ytick.color": INK["muted"],
    "xtick.labelcolor": INK["muted"],
    "ytick.labelcolor": INK["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": INK["background"],
    "axes.facecolor": INK["background"],
}


@dataclass
class Drawing:
    """A figure with one plot, while it is drawn; `svg` is there afterwards."""

    axes: Axes
    svg: str = ""


def accuracy_bars(accuracies: Mapping[str, Mapping[str, Interval]]) -> str:
    """Accuracy with its 95 % interval by task and policy.

    Args:
        accuracies: task to policy to interval, in the order to show.
    """
    num_bars = sum(map(len, accuracies.values()))
    with _drawing("Accuracy, with 95 % intervals", height=0.75 + 0.23 * num_bars + 0.16 * len(accuracies)) as drawing:
        axes = drawing.axes
        place, ticks = 0.0, []
        for by_policy in accuracies.values():
            first = place
            for i, (policy, interval) in enumerate(by_policy.items()):
                colour = SERIES[i % len(SERIES)]
                axes.barh(place, interval.estimate, height=0.8, color=colour, alpha=0.8, linewidth=0)
                axes.plot([interval.low, interval.high], [place, place], color=INK["text"], linewidth=1.2)
                axes.text(interval.high + 0.015, place, f"{policy} {interval.estimate:.3f}", va="center", size=8.5)
                place += 1
            ticks.append((first + place - 1) / 2)
            place += 0.7
        axes.set_yticks(ticks, [_short(task) for task in accuracies])
        axes.tick_params(axis="y", labelcolor=INK["text"])
        axes.set(xlim=(0, 1.3), xticks=[0, 0.25, 0.5, 0.75, 1], xlabel="share of prompts answered exactly")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    return drawing.svg


def reliability(calibration: Calibration) -> str:
    """How often the reward model is right against how sure it is; the area of a point is the number of pairs."""
    filled = [b for b in calibration.bins if b.num_pairs]
    total = sum(b.num_pairs for b in filled)
    with _drawing(f"Reward model: calibration error {calibration.error:.3f}") as drawing:
        axes = drawing.axes
        axes.plot([0.5, 1], [0.5, 1], color=INK["muted"], linewidth=1, linestyle=(0, (4, 3)))
        style: dict[str, Any] = {"ha": "right", "color": INK["muted"], "size": 8.5, "transform": axes.transAxes}
        axes.text(0.98, 0.06, "dashed: as often right as sure", **style)
        x, y = [b.confidence for b in filled], [b.accuracy for b in filled]
        axes.plot(x, y, color=SERIES[0], linewidth=1, alpha=0.6)
        axes.scatter(x, y, s=[20 + 400 * b.num_pairs / total for b in filled], color=SERIES[0], alpha=0.8, linewidths=0)
        for b in filled:
            axes.annotate(f"{b.num_pairs:,}", (b.confidence, b.accuracy), (0, -14), textcoords="offset points", size=8)
        lowest = min([0.5, *y])
        axes.set(xlim=(0.48, 1.04), ylim=(max(-0.1, lowest - 0.12), 1.08))
        axes.set(xlabel="mean confidence (numbers: pairs)", ylabel="share ranked rightly")
    return drawing.svg


def histograms(scores: Mapping[str, Sequence[float]], title: str, label: str, whole: bool = False) -> str:
    """Outlined histograms over one another, each named beside its highest bar.

    Args:
        whole: the values are whole numbers, and so are the edges of the bins.
    """
    values = np.concatenate([np.asarray(of_one, dtype=np.float64) for of_one in scores.values()])
    edges = _edges(values, whole)
    with _drawing(title) as drawing:
        axes = drawing.axes
        shares = {name: np.histogram(of_one, edges)[0] / max(1, len(of_one)) for name, of_one in scores.items()}
        top = max(float(share.max()) for share in shares.values())
        for i, (name, share) in enumerate(shares.items()):
            colour = SERIES[i % len(SERIES)]
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.22)
            axes.stairs(share, edges, color=colour, linewidth=1.6)
            mean = float(np.mean(scores[name]))
            axes.text(
                1.0,
                1.0 - 0.085 * i,
                f"{name}: mean {mean:.2f}",
                color=colour,
                ha="right",
                va="top",
                transform=axes.transAxes,
                fontweight="bold",
                size=8.5,
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=whole))
        axes.set(xlabel=label, ylabel="share", ylim=(0, top * (1.12 + 0.11 * len(shares))))
        axes.grid(axis="x", visible=False)
    return drawing.svg


def against_divergence(
    points: Mapping[str, tuple[Interval, Interval]],
    best_of_n: Mapping[int, tuple[float, Interval]],
    reference: str,
    title: str,
    label: str,
) -> str:
    """What policies reach by their divergence from the reference, beside what best-of-n from the reference reaches.

    Args:
        points: policy to (divergence in nats, what it reaches), with 95 % intervals.
        best_of_n: n to (bound of its divergence, what it reaches), in the order to join them; may be empty.
        reference: the policy that the divergence is from.
    """
    with _drawing(title, height=2.9) as drawing:
        axes = drawing.axes
        if best_of_n:
            bounds, reached = zip(*best_of_n.values(), strict=True)
            style: dict[str, Any] = {"color": INK["muted"], "linewidth": 0}
            axes.fill_between(bounds, [r.low for r in reached], [r.high for r in reached], alpha=0.18, **style)
            axes.plot(bounds, [r.estimate for r in reached], "o-", color=INK["muted"], linewidth=1.4, markersize=3.5)
            for n, bound, interval in zip(best_of_n, bounds, reached, strict=True):
                text = f"best of {n}" if n == max(best_of_n) else str(n)
                place = (bound, interval.estimate)
                axes.annotate(text, place, (2, -12), textcoords="offset points", color=INK["muted"], size=8.5)
        for i, (kl, reward) in enumerate(points.values()):
            colour = SERIES[i % len(SERIES)]
            axes.plot([kl.low, kl.high], [reward.estimate] * 2, color=colour, linewidth=1.4)
            axes.plot([kl.estimate] * 2, [reward.low, reward.high], color=colour, linewidth=1.4)
            axes.plot(kl.estimate, reward.estimate, "o", color=colour, markersize=7)
        axes.margins(0.18)
        _name_points(axes, {policy: (kl.estimate, reward.estimate) for policy, (kl, reward) in points.items()})
        bound = "; of best of n its bound" if best_of_n else ""
        axes.set(xlabel=f"KL from {reference}, nats a completion{bound}", ylabel=label)
    return drawing.svg


def trajectory(x: Sequence[float], y: Sequence[float], title: str, x_label: str, y_label: str) -> str:
    """Two quantities against each other as training goes on: the later, the darker; its first and last point named.

    Args:
        x, y: (steps,), in the order of the steps, at least one.
    """
    with _drawing(title, height=2.6) as drawing:
        axes = drawing.axes
        axes.plot(x, y, color=SERIES[0], linewidth=0.8, alpha=0.35)
        for i, point in enumerate(zip(x, y, strict=True)):
            axes.plot(*point, "o", color=SERIES[0], markersize=4.5, alpha=0.25 + 0.75 * (i + 1) / len(x), mew=0)
        axes.margins(0.15)
        _name_points(axes, {"first": (x[0], y[0]), "last": (x[-1], y[-1])}, INK["text"])
        axes.set(xlabel=x_label, ylabel=y_label)
    return drawing.svg


def _name_points(axes: Axes, points: Mapping[str, tuple[float, float]], colour: str | None = None) -> None:
    """Writes each name beside its point, on the first side where no other name or point is in the way."""
    axes.autoscale_view()  # or the limits are still those of an empty plot
    pixels_a_point = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    at = {name: axes.transData.transform(point) / pixels_a_point for name, point in points.items()}
    taken = [(float(x), float(y)) for x, y in at.values()]
    for i, (name, point) in enumerate(points.items()):
        place = at[name]
        width, height = 6.5 * len(name), 12.0
        sides = [(dx, dy) for dx in (8, -8 - width) for dy in (7, -15, 20, -28)]
        free = (
            (dx, dy)
            for dx, dy in sides
            if all(not (-4 < x - place[0] - dx < width + 4 and -4 < y - place[1] - dy < height + 4) for x, y in taken)
        )
        dx, dy = next(free, sides[0])
        taken += [(place[0] + dx + share * width, place[1] + dy + height / 2) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
        ink = colour or SERIES[i % len(SERIES)]
        axes.annotate(name, point, (dx, dy), textcoords="offset points", color=ink, weight="bold")


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, label: str = "step") -> str:
    """Lines, each named at its end with its last value.

    Args:
        series: name to (x, y); values that are not finite leave gaps.
    """
    with _drawing(title, height=2.4) as drawing:
        axes = drawing.axes
        ends = []
        for i, (name, (x, y)) in enumerate(series.items()):
            finite = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
            if not finite:
                continue
            colour = SERIES[i % len(SERIES)]
            marker = "o" if len(finite) < 12 else ""
            axes.plot(*zip(*finite, strict=True), color=colour, linewidth=1.5, marker=marker, markersize=3.5)
            ends.append((finite[-1][1], f"{name} {finite[-1][1]:.4g}", colour))
        low, high = axes.get_ylim()
        gap, place = (high - low) * 0.09, -math.inf
        for last, text, colour in sorted(ends):
            place = max(last, place + gap)
            axes.annotate(
                text,
                (1.0, place),
                (5, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                color=colour,
                va="center",
                size=8.5,
                annotation_clip=False,
            )
        axes.set(xlabel=label, ylim=(low, high))
    return drawing.svg


def two_scales(
    left: tuple[str, Sequence[float], Sequence[float]], right: tuple[str, Sequence[float], Sequence[float]], title: str
) -> str:
    """Two curves over the same steps, each in its own unit.

    Args:
        left, right: (label, x, y); the right one is a share, from 0 to 1.
    """
    with _drawing(title, height=2.4) as drawing:
        other = drawing.axes.twinx()
        for axes, (label, x, y), colour in ((drawing.axes, left, SERIES[0]), (other, right, SERIES[1])):
            axes.plot(x, y, color=colour, linewidth=1.5)
            axes.set_ylabel(label, color=colour)
            axes.tick_params(axis="y", labelcolor=colour)
        other.set(ylim=(0, 1))
        other.grid(visible=False)
        drawing.axes.set(xlabel="step")
    return drawing.svg


def counted(edges: Sequence[float], counts: Sequence[int], title: str, label: str, limit: float | None = None) -> str:
    """A histogram whose counts are there already, with a line at a limit that lies within it."""
    with _drawing(title, height=2.2) as drawing:
        axes = drawing.axes
        axes.stairs(counts, edges, color=SERIES[0], fill=True, alpha=0.8)
        if limit is not None and limit <= edges[-1]:
            axes.axvline(limit, color=SERIES[1], linewidth=1.4)
            side = "right" if limit > (edges[0] + edges[-1]) / 2 else "left"
            axes.annotate(
                f"limit {limit:,}",
                (limit, 1.02),
                (-5 if side == "right" else 5, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha=side,
                color=SERIES[1],
                size=8.5,
            )
        axes.set(xlabel=label, ylabel="rows")
        axes.grid(axis="x", visible=False)
    return drawing.svg


@contextmanager
def _drawing(title: str, height: float = 2.8) -> Iterator[Drawing]:
    with matplotlib.rc_context({**_STYLE}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        drawing = Drawing(figure.add_subplot())
        drawing.axes.set_title(title)
        yield drawing
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # the XML declaration and doctype are of no use inside a page, and browsers read the file without them
    drawing.svg = buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if whole:
        step = math.ceil((high - low + 1) / 30)
        return np.arange(low, high + step + 1, step)
    return np.linspace(low, high, 31) if high > low else np.array([low - 0.5, high + 0.5])


def _short(name: str, length: int = 18) -> str:
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "…"
