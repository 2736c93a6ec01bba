"""The plot of the page: distances over the runs, and one prompt's probabilities. Light and dark as the reader's system.

Text and lines are drawn in the ink of `tuneline.evaluation.figures` and then handed over to variables of a style sheet
inside the SVG; the colours of the series stand out from both backgrounds.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.analytic_optimum_settings import LIMIT, SETTINGS
from tuneline.evaluation.figures import INK, SERIES

# Of those that end at the optimum, and of two that do not.
COLOURS = {"ppo": SERIES[1], "rloo": SERIES[0], "grpo-reward": SERIES[2], "dpo": SERIES[3]}
LABELS = {"ppo": "PPO", "rloo": "RLOO", "grpo-reward": "GRPO, KL in the reward", "dpo": "DPO"}
ELSEWHERE = {"grpo-token": "GRPO, KL in the loss", "grpo-defaults": "GRPO, defaults"}

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tuneline",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK["text"],
    "axes.edgecolor": INK["grid"],
    "axes.labelcolor": INK["muted"],
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": INK["grid"],
    "grid.linewidth": 0.6,
    "xtick.color": INK["muted"],
    "ytick.color": INK["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
_DARK = {"text": "#e6edf3", "muted": "#9198a1", "grid": "#3d444d", "background": "#0d1117"}


def plot(rows: dict[str, Any]) -> str:
    """An SVG of those rows that are there, transparent."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 6.2), layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1)
        _distances(above, rows)
        _probabilities(below, rows)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for name, colour in INK.items():
        text = text.replace(colour, f"var(--{name})")
    start = text.index(">") + 1
    return (
        text[:start]
        + "\n"
        + _style_sheet()
        + "\n"
        + "\n".join(line.rstrip() for line in text[start:].splitlines())
        + "\n"
    )


def _distances(axes: Axes, rows: dict[str, Any]) -> None:
    for name, label in {**ELSEWHERE, **LABELS}.items():
        if name in rows:
            x, y = zip(*rows[name]["curve"], strict=True)
            if name in LABELS:
                style: dict[str, Any] = {"color": COLOURS[name], "linewidth": 1.7}
            else:
                style = {"color": INK["muted"], "linewidth": 1.3, "linestyle": "-" if name == "grpo-token" else ":"}
            axes.plot([100 * share for share in x], y, label=f"{label}: {y[-1]:.3f}", **style)
    axes.axhline(LIMIT, color=INK["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.text(100, LIMIT + 0.006, f"{LIMIT}", ha="right", va="bottom", color=INK["muted"], size=8.5)
    axes.set_title("Total variation from the optimum, mean over the prompts")
    axes.set(xlim=(0, 100), ylim=(0, None), xlabel="share of the run, per cent")
    axes.legend(frameon=False, fontsize=8.5, loc="upper right", ncols=2)


def _probabilities(axes: Axes, rows: dict[str, Any]) -> None:
    """The prompt of which one of the methods is furthest away."""
    shown = [name for name in LABELS if name in rows]
    if not shown:
        axes.set_axis_off()
        return
    furthest = max(shown, key=lambda name: max(rows[name]["from_optimum"]))
    distances = rows[furthest]["from_optimum"]
    prompt = distances.index(max(distances))
    task = next(setting.task for setting in SETTINGS if setting.name == furthest)
    known = {name: values[prompt] for name, values in rows[furthest]["probabilities"].items()}
    order = sorted(range(len(task.completions)), key=lambda i: -known["optimum"][i])
    places = range(len(order))
    bars: dict[str, Any] = {"width": 0.8, "linewidth": 1.1}
    axes.bar(places, [known["optimum"][i] for i in order], color=INK["grid"], label="optimum", **bars)
    reference = [known["reference"][i] for i in order]
    axes.bar(places, reference, fill=False, edgecolor=INK["muted"], linestyle=":", label="reference", **bars)
    for number, name in enumerate(shown):
        x = [place + 0.17 * (number - (len(shown) - 1) / 2) for place in places]
        y = [rows[name]["probabilities"]["policy"][prompt][i] for i in order]
        axes.plot(x, y, "o", color=COLOURS[name], markersize=4, label=LABELS[name])
    axes.set_xticks(list(places), [task.text(task.completions[i]) for i in order])
    axes.set_title(
        f"Probabilities of all completions of “{task.prompts[prompt]}”, the prompt with the largest distance"
    )
    axes.set(xlabel="completion (a full stop is the end token)")
    axes.legend(frameon=False, fontsize=8.5, loc="upper right", ncols=2)


def _style_sheet() -> str:
    def variables(colours: dict[str, str]) -> str:
        return " ".join(f"--{name}: {colour};" for name, colour in colours.items())

    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(_DARK)} }} }}"
    return f"<style>:root {{ {variables(INK)} }} {dark}</style>"
