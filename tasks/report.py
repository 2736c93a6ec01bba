"""The HTML report of a run: one file with everything in it, for light and dark screens of any width."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import yaml
from markupsafe import Markup

from tasks.report_parts import DataSummary, read_curves, read_data_summary, read_environment, read_json, read_rollouts
from tasks.summary import RunSummary, headline, read_off
from tuneline.evaluation import figures
from tuneline.logging import get_logger

logger = get_logger(__name__)

REPORT_FILE = Path("reports/report.html")
# What a reader looks at first; all others are in curve.csv.
CURVES = {
    "sft": ("loss", "mean_token_accuracy"),
    "reward": ("loss", "accuracy", "margin"),
    "dpo": ("loss", "rewards/accuracies", "rewards/margins"),
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
MEASURES = {
    "accuracy": "Accuracy ({verifier})",
    "accuracy_gain": "Gain in accuracy over {baseline}, paired",
    "win_rate_verifier": "Win rate against {baseline}, by verifier",
    "win_rate_reward": "Win rate against {baseline}, by reward model",
    "reward": "Mean score of the reward model",
    "kl": "KL from {baseline}, nats a completion (log-ratios)",
    "kl_exact": "KL from {baseline}, nats a completion (exact by token)",
    "completion_length": "Completion length, tokens",
    "share_cut_off": "Share cut off",
    "pairwise_accuracy": "Pairs ranked rightly",
    "calibration_error": "Expected calibration error",
    "length_pearson": "Score and length, Pearson",
    "length_spearman": "Score and length, Spearman",
    "prefers_longer": "Scores the longer answer higher",
    "longer_is_chosen": "Pairs whose longer answer is the chosen one",
}
BEST_OF_N = {
    "accuracy": "Accuracy ({verifier})",
    "reward": "Mean score of the reward model",
    "kl_bound": "KL from {baseline} at most, nats (log n − (n−1)/n)",
}
FIGURES = ("accuracy", "accuracy_kl", "reward_kl", "lengths", "reliability", "pair_scores", "policy_scores")
REWARD_MODEL = "reward_model"
VERIFIED = "rewards/verifier/mean"
_SVG_TAGS = {"svg", "g", "path", "defs", "style", "text", "tspan", "use", "rect", "clipPath"}


def write_report(root: Path, run: RunSummary) -> Path:
    """Write reports/report.html on a run and on what lies in the checkout, and return its path."""
    path = root / REPORT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(render_report(root, run), encoding="utf-8")
    os.replace(aside, path)
    return path


def render_report(root: Path, run: RunSummary) -> str:
    """The report as HTML. All that comes from data, configs and models is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "plain": "{:,.6g}".format,
        "duration": duration,
        "prompt_parts": prompt_parts,
    }
    data = read_data_summary(root)
    evaluation = read_json(root / "reports" / "evaluate" / "files" / "evaluation.json")
    samples = read_json(root / "reports" / "evaluate" / "files" / "samples.json")
    return environment.get_template("report.html.jinja").render(
        run=run,
        headlines={stage.name: headline(stage) for stage in run.stages},
        tiles=_tiles(run, evaluation),
        data=data,
        length_figures=_length_figures(data),
        curves={stage: _curve_figures(root, stage, names) for stage, names in CURVES.items()},
        off={stage: read_off(root, stage) for stage in CURVES},
        rollouts={stage: read_rollouts(root, stage) for stage in ("ppo", "grpo")},
        evaluation=evaluation,
        tables=_tables(evaluation),
        figures=_stored_figures(root),
        samples=samples if isinstance(samples, list) else [],
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        environment=read_environment(root),
        inks=figures.INK,
        series=figures.SERIES,
    )


def themed(svg: str) -> Markup:
    """A figure of `tuneline.evaluation.figures` as part of the page, in the page's colours.

    Raises:
        ValueError: it is not the drawing that it should be: it is no XML, or it has scripts or outside references.
    """
    try:
        elements = list(ElementTree.fromstring(re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)).iter())
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
        if "url(" in re.sub(
            r"url\(#", "", "".join([*element.attrib.values(), (tag == "style" and element.text) or ""])
        ):
            raise ValueError("an outside reference")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # numbered alike in every figure, and nothing refers to them
    for name, colour in figures.INK.items():
        svg = svg.replace(colour, f"var(--{name})")
    for i, colour in enumerate(figures.SERIES):
        svg = svg.replace(colour, f"var(--series-{i})")
    return Markup(svg)


def number(value: Any) -> str:
    """A number as a reader wants it: whole ones with separators, others with three decimals; `–` for none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 0.0005 or value == 0 else f"{value:.1e}"


def duration(seconds: float) -> str:
    """Such as `4.2 s`, `3:07` or `2:03:07`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def prompt_parts(prompt: Any) -> list[tuple[str, str]]:
    """(role, text) of each message; a plain prompt has no role."""
    if isinstance(prompt, list):
        return [(str(m.get("role", "")), str(m.get("content", ""))) for m in prompt if isinstance(m, dict)]
    return [("", str(prompt))]


def _tiles(run: RunSummary, evaluation: Any) -> list[tuple[str, str, str]]:
    """(label, value, detail) of what the run comes down to."""
    tiles = []
    for name, measures in (evaluation or {}).get("measures", {}).items():
        measure = "pairwise_accuracy" if name == REWARD_MODEL else "accuracy"
        if isinstance(measures.get(measure), list):
            estimate, low, high = measures[measure]
            label = "reward model: pairs ranked rightly" if name == REWARD_MODEL else f"{name}: accuracy"
            tiles.append((label, f"{estimate:.1%}", f"{low:.1%} to {high:.1%}"))
    num_cached = sum(stage.state == "cached" for stage in run.stages)
    tiles.append(("this run", duration(run.seconds), f"{num_cached} of {len(run.stages)} stages were up to date"))
    return tiles


def _tables(evaluation: Any) -> dict[str, Any]:
    """The evaluation as tables: rows of (label, cells), a cell a number or an estimate with its interval."""
    measures = (evaluation or {}).get("measures", {})
    by_task = (evaluation or {}).get("by_task", {})
    settings = (evaluation or {}).get("settings", {})
    words = {"baseline": settings.get("baseline", ""), "verifier": settings.get("verifier") or "exact match"}
    labels = {**MEASURES, **{f"pass_at_{k}": f"pass@{k}" for k in settings.get("pass_at", ())}}
    policies = [name for name in measures if name != REWARD_MODEL]
    best_of_n = (evaluation or {}).get("best_of_n", {})
    tasks = sorted({task for name in policies for task in by_task.get(name, {})})

    def rows(
        names: list[str], measures: dict[str, Any] = measures, labels: dict[str, str] = labels
    ) -> list[tuple[str, list[Any]]]:
        known = [measure for measure in labels if any(measure in measures[name] for name in names)]
        return [(labels[m].format(**words), [measures[name].get(m) for name in names]) for m in known]

    return {
        "policies": policies,
        "measures": rows(policies),
        "best_of_n": list(best_of_n),
        "best_of_n_measures": rows(list(best_of_n), best_of_n, BEST_OF_N),
        "tasks": [(task, [by_task.get(name, {}).get(task) for name in policies]) for task in tasks],
        "reward": rows([REWARD_MODEL]) if REWARD_MODEL in measures else [],
        "reward_tasks": [(task, [interval]) for task, interval in by_task.get(REWARD_MODEL, {}).items()],
    }


def _length_figures(data: DataSummary | None) -> list[Markup]:
    drawn = []
    for name, lengths in (data.lengths if data else {}).items():
        histogram = lengths.get("histogram")
        if histogram and not name.endswith("/eval"):
            title = f"{name}: tokens a row"
            svg = figures.counted(histogram["edges"], histogram["counts"], title, "tokens", lengths.get("max_length"))
            drawn.append(themed(svg))
    return drawn


def _curve_figures(root: Path, stage: str, names: tuple[str, ...]) -> list[Markup]:
    curves = {curve.name: curve for curve in read_curves(root, stage)}
    drawn = []
    if "reward" in curves and VERIFIED in curves:  # they go apart where the policy deceives
        learned, right = (curves.pop(name).series["train"] for name in ("reward", VERIFIED))
        sides = ("reward", *learned), ("share that the verifier finds right", *right)
        drawn.append(themed(figures.two_scales(*sides, "What is rewarded, and what is right")))
    return drawn + [themed(figures.curves(curves[name].series, name)) for name in names if name in curves]


def _stored_figures(root: Path) -> list[Markup]:
    drawn = []
    for name in FIGURES:
        path = root / "reports" / "evaluate" / "files" / "figures" / f"{name}.svg"
        try:
            drawn.append(themed(path.read_text(encoding="utf-8")))
        except OSError:
            continue
        except ValueError as error:
            logger.warning("%s is left out of the report: it has %s", path, error)
    return drawn
