"""A sweep's comparison as one self-contained page and as JSON, in reports/sweeps."""

from __future__ import annotations

import json
from pathlib import Path
from xml.sax.saxutils import escape

import jinja2
from markupsafe import Markup

from stages.storage import write_whole
from tasks.display import in_words as time_in_words
from tasks.sweep_compare import Comparison, MetricComparison
from tasks.sweep_settings import in_words

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 34, 190, 20, 12, 40
_MOST_LABEL = 30


def report_files(root: Path, name: str) -> tuple[Path, Path]:
    """Where the page and the JSON of a sweep lie."""
    folder = root / "reports" / "sweeps"
    return folder / f"{name}.html", folder / f"{name}.json"


def write_sweep_report(root: Path, comparison: Comparison) -> tuple[Path, Path]:
    """Writes both, each aside and renamed, and returns their paths."""
    page, numbers = report_files(root, comparison.name)
    write_whole(page, render(comparison))
    write_whole(numbers, json.dumps(comparison.as_json(), indent=1))
    return page, numbers


def render(comparison: Comparison) -> str:
    """The page; all that comes from settings and errors is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": "{:.4g}".format, "signed": "{:+.4g}".format, "duration": time_in_words}
    shown = {metric.metric for metric in comparison.metrics}
    others = sorted({name for variant in comparison.variants for name in variant.metrics} - shown)
    return environment.get_template("sweep.html.jinja").render(
        comparison=comparison,
        plots={metric.metric: draw(metric) for metric in comparison.metrics},
        labels={variant.name: in_words(variant.chosen) for variant in comparison.variants},
        others=others,
        num_done=sum(variant.state == "done" for variant in comparison.variants),
    )


def draw(metric: MetricComparison) -> Markup:
    """One row a setting: a dot a seed, the mean as a bar, its interval as a line; SVG in the page's colours."""
    values = [value for setting in metric.settings for value in setting.values.values()]
    ends = [end for s in metric.settings for end in (s.interval.low, s.interval.high) if end is not None]
    low, high = min(values + ends), max(values + ends)
    is_wide = high - low > 1e-6 * max(abs(low), abs(high))
    room = (high - low) * 0.05 if is_wide else abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    height = _TOP + _ROW * len(metric.settings) + _BOTTOM

    def x(value: float) -> str:
        return f"{_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT):.1f}"

    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(metric.metric)} by setting">']
    for step in range(5):
        value = low + (high - low) * (step + 0.5) / 5
        parts.append(f'<line class="grid" x1="{x(value)}" x2="{x(value)}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{x(value)}" y="{height - _BOTTOM + 16}">{value:.3g}</text>')
    for number, setting in enumerate(metric.settings):
        y = _TOP + _ROW * (number + 0.5)
        label = setting.label if len(setting.label) <= _MOST_LABEL else f"{setting.label[: _MOST_LABEL - 1]}…"
        kind = "best" if setting.is_best else "other"
        parts.append(f'<text class="label {kind}" x="{_LEFT - 10}" y="{y + 4:.1f}">{escape(label)}</text>')
        if setting.interval.low is not None and setting.interval.high is not None:
            span = f'x1="{x(setting.interval.low)}" x2="{x(setting.interval.high)}"'
            parts.append(f'<line class="span {kind}" {span} y1="{y}" y2="{y}"/>')
        mean = x(setting.interval.mean)
        parts.append(f'<line class="mean {kind}" x1="{mean}" x2="{mean}" y1="{y - 9}" y2="{y + 9}"/>')
        for seed, value in setting.values.items():
            told = escape(f"{setting.label} {seed}: {value:.4g}")
            parts.append(f'<circle class="{kind}" cx="{x(value)}" cy="{y}" r="4"><title>{told}</title></circle>')
    parts.append(
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{height - 6}">{escape(metric.metric)}</text>'
    )
    return Markup("".join([*parts, "</svg>"]))
