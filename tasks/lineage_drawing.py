"""A lineage as a drawing: the target on top, below it what it was made from; SVG, or a page with details below it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

import jinja2
from markupsafe import Markup

from stages.storage import write_whole
from tasks.lineage import Lineage, Step
from tasks.lineage_records import PACKAGE_LOCK
from tasks.lineage_text import in_bytes, uncommitted_words
from tuneline.errors import TunelineError

_WIDTH, _LINE, _PAD, _GAP_X, _GAP_Y = 236, 17, 10, 26, 52
_MOST_CHARACTERS = 34
_STYLE = """
.lineage { --ink: #1c2330; --dim: #5b6575; --line: #9aa4b2; --source: #e7f0fb; --stage: #eef7ec; --target: #fdf1dc;
  background: #ffffff; font: 12px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { .lineage { --ink: #e6e9ee; --dim: #a7b0bd; --line: #6b7686; --source: #1d2b3f;
  --stage: #1e3222; --target: #40311a; background: #14181e; } }
.lineage text { fill: var(--ink); } .lineage .dim { fill: var(--dim); } .lineage .title { font-weight: 600; }
.lineage path { stroke: var(--line); fill: none; stroke-width: 1.4; } .lineage marker path { fill: var(--line); }
.lineage rect { stroke: var(--line); } .lineage .source { fill: var(--source); } .lineage .stage { fill: var(--stage); }
.lineage .target { fill: var(--target); }
"""


@dataclass
class _Box:
    key: str
    kind: str
    title: str
    lines: list[str]
    column: int
    x: float = 0.0
    y: float = 0.0

    @property
    def height(self) -> float:
        return 2 * _PAD + _LINE * (1 + len(self.lines))


def write_drawing(lineage: Lineage, path: Path) -> None:
    """Write the drawing to a file that ends in .svg or .html; it refers to nothing outside itself.

    Raises:
        TunelineError: it ends in something else.
    """
    if path.suffix not in (".svg", ".html"):
        raise TunelineError(f"{path} ends in neither .svg nor .html, the two kinds that a lineage is drawn as.")
    write_whole(path, as_svg(lineage) if path.suffix == ".svg" else as_page(lineage))


def as_svg(lineage: Lineage) -> str:
    """The drawing, with colours for light and dark screens."""
    boxes, edges = _boxes(lineage)
    width, height = _place(boxes, edges)
    svg = ElementTree.Element(
        "svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "lineage", "role": "img", "width": f"{width:.0f}"}
    )
    svg.set("height", f"{height:.0f}")
    svg.set("viewBox", f"0 0 {width:.0f} {height:.0f}")
    svg.set("aria-label", f"How {lineage.target.name} was made")
    ElementTree.SubElement(svg, "style").text = _STYLE
    marker = ElementTree.SubElement(ElementTree.SubElement(svg, "defs"), "marker", {"id": "arrow", "orient": "auto"})
    for name, value in {
        "viewBox": "0 0 8 8",
        "refX": "7",
        "refY": "4",
        "markerWidth": "8",
        "markerHeight": "8",
    }.items():
        marker.set(name, value)
    ElementTree.SubElement(marker, "path", {"d": "M0 0L8 4L0 8z"})
    by_key = {box.key: box for box in boxes}
    for start, end in edges:
        _draw_edge(svg, by_key[start], by_key[end])
    for box in boxes:
        _draw_box(svg, box)
    return ElementTree.tostring(svg, encoding="unicode")


def as_page(lineage: Lineage) -> str:
    """A page with the drawing and, stage by stage, all that is known."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bytes"] = lambda size: "" if size is None else in_bytes(size)
    page = environment.get_template("lineage.html.jinja")
    return page.render(lineage=lineage, drawing=Markup(as_svg(lineage)), uncommitted=uncommitted_words)


def _boxes(lineage: Lineage) -> tuple[list[_Box], list[tuple[str, str]]]:
    depth = _depths(lineage)
    last = max(depth.values(), default=0) + 1
    boxes = [_Box("target", "target", lineage.target.name, _target_lines(lineage), last + 1)]
    edges = []
    for step in lineage.steps:
        record = step.record
        boxes.append(_Box(record.key, "stage", record.stage, _step_lines(step), depth[record.key] + 1))
        edges += [(key, record.key) for key in dict.fromkeys(step.inputs.values()) if key]
        if lineage.target.record is not None and record.key == lineage.target.record.key:
            edges.append((record.key, "target"))
    known: dict[tuple[str, ...], str] = {}
    for step in lineage.steps:
        for source in step.sources:
            if source.path == PACKAGE_LOCK:  # which each stage's own box names
                continue
            name = (source.role, source.path, source.md5, source.text)
            if name not in known:
                known[name] = f"source {len(known)}"
                lines = (
                    source.text.split(": ") if not source.path else [source.path, *_hash_lines(source.md5, source.size)]
                )
                boxes.append(_Box(known[name], "source", source.role, lines, depth[step.record.key]))
            edges.append((known[name], step.record.key))
    for source in lineage.sources:
        boxes.append(_Box("only", "source", source.role, [source.path, *_hash_lines(source.md5, source.size)], last))
        edges.append(("only", "target"))
    return boxes, edges


def _depths(lineage: Lineage) -> dict[str, int]:
    """How many runs lie before each run at most."""
    depth: dict[str, int] = {}
    for step in lineage.steps:  # each after those that it needs
        depth[step.record.key] = 1 + max((depth[key] for key in step.inputs.values() if key), default=-1)
    return depth


def _place(boxes: list[_Box], edges: list[tuple[str, str]]) -> tuple[float, float]:
    """Put the boxes in rows, each below what reads it as far as that goes; the width and height of the drawing."""
    boxes.sort(key=lambda box: -box.column)
    by_key, y, width = {box.key: box for box in boxes}, float(_PAD), 0.0
    for _, group in groupby(boxes, key=lambda box: box.column):
        row = list(group)
        readers = {box.key: [by_key[end].x for start, end in edges if start == box.key] for box in row}
        row.sort(key=lambda box: sum(readers[box.key]) / len(readers[box.key]) if readers[box.key] else 0.0)
        for number, box in enumerate(row):
            box.x, box.y = _PAD + number * (_WIDTH + _GAP_X), y
        y += max(box.height for box in row) + _GAP_Y
        width = max(width, 2 * _PAD + len(row) * (_WIDTH + _GAP_X) - _GAP_X)
    return width, y - _GAP_Y + _PAD


def _draw_edge(svg: ElementTree.Element, start: _Box, end: _Box) -> None:
    """From the top of what is read to the bottom of what reads it."""
    # One that passes a row runs beside those from row to row, so that it is seen between the boxes that it passes.
    inner = min(_WIDTH / 2 + 30 * (end.column - start.column - 1), _WIDTH - _PAD)
    x0, y0, x1, y1 = start.x + inner, start.y, end.x + inner, end.y + end.height
    bend = max(24.0, (y0 - y1) / 2)
    curve = f"M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 - bend:.0f} {x1:.0f} {y1 + bend:.0f} {x1:.0f} {y1:.0f}"
    ElementTree.SubElement(svg, "path", {"d": curve, "marker-end": "url(#arrow)"})


def _draw_box(svg: ElementTree.Element, box: _Box) -> None:
    group = ElementTree.SubElement(svg, "g")
    ElementTree.SubElement(group, "title").text = "\n".join([box.title, *box.lines])
    shape = {"x": box.x, "y": box.y, "width": _WIDTH, "height": box.height, "rx": 6}
    ElementTree.SubElement(
        group, "rect", {"class": box.kind, **{name: f"{value:.0f}" for name, value in shape.items()}}
    )
    for number, line in enumerate([box.title, *box.lines]):
        place = {"x": f"{box.x + _PAD:.0f}", "y": f"{box.y + _PAD + _LINE * (number + 0.75):.0f}"}
        text = ElementTree.SubElement(group, "text", {"class": "dim" if number else "title", **place})
        text.text = line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 1]}…"


def _target_lines(lineage: Lineage) -> list[str]:
    target = lineage.target
    lines = [f"= {target.value:.6g}"] if target.value is not None else []
    if target.version and target.version.aliases:
        lines.append(f"aliases: {', '.join(target.version.aliases)}")
    return [*lines, target.path, *_hash_lines(target.content.md5 if target.content else "", None)]


def _step_lines(step: Step) -> list[str]:
    run = step.run
    lines = [
        line
        for path, out in step.record.outs.items()
        if "reports/" not in path
        for line in (path, *_hash_lines(out.md5, out.size))
    ]
    if run is not None and run.commit:
        lines.append(f"commit {run.commit[:10]}{' + changes' if run.patch not in ('', 'none') else ''}")
    if run is not None:
        lines.append(f"MLflow {run.id[:12]}")
        lines += [f"Prefect {run.flow_run[:13]}"] if run.flow_run else []
    lock = step.package_lock
    return lines + ([f"packages {lock.md5[:12]}"] if lock else [])


def _hash_lines(md5: str, size: int | None) -> list[str]:
    if not md5:
        return []
    return [f"md5 {md5[:16]}" + (f", {in_bytes(size)}" if size is not None else "")]
