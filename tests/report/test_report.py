import itertools
import re
from datetime import UTC, datetime

import pytest

from stages.off import write_nothing
from stages.rollouts import RolloutTables, join_tables
from tasks.report import write_report
from tasks.report_figures import themed
from tasks.report_text import duration, number, prompt_parts
from tasks.summary import RunSummary, StageSummary
from tests.evaluation.checkout import TASKS, make_checkout
from tests.report.page import HOSTILE, Page, assert_harmless, without_curves
from tuneline.evaluation import figures


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    path = write_report(root, make_checkout(root))
    assert path == root / "reports" / "report.html"
    return path.read_text()


def test_a_report_shows_every_part(html):
    page = Page(html)
    for part in (
        *("prepare", "cached", "up to date", "eval/loss", "3:07"),  # the run
        *("duplicates", "overlapping", "Would be cut", "made on the machine", "sft/train: tokens a row"),  # the data
        *("Accuracy (exact match)", "Win rate against sft, by reward model", "KL from sft", "Share cut off", *TASKS),
        *("Best of n from sft, by the reward model", "KL from sft at most", "all subsets of the 4 drawn a prompt"),
        *("Expected calibration error", "Pairs ranked rightly", "300 pairs"),  # the reward model
        *("solution:", "✓ correct", "✗ wrong"),  # samples
        *("beta: 0.1", "transformers", "0123456789abcdef0123456789abcdef.dir", "amber-fox", "0a1b2c", "sha256"),
    ):
        assert part in page.text, part
    # three histograms of lengths, loss and accuracy of three stages, reward of two, and those of the evaluation
    assert page.tags.count("svg") == 3 + 3 * 2 + 2 + 7
    assert "missing" not in page.text
    assert "is not there" not in page.text


def test_rollouts_of_grpo_and_stages_that_are_off_are_shown(tmp_path):
    run = make_checkout(tmp_path)
    without_curves(tmp_path)
    write_nothing("dpo", tmp_path / "off", "off: prepare.preferences is null")
    (tmp_path / "models").mkdir()
    (tmp_path / "off" / "final").rename(tmp_path / "models" / "dpo")
    tables = RolloutTables(tmp_path / "work")
    tables.folder.mkdir()
    for step in range(1, 10):
        rollouts = {
            "prompt": [f"{HOSTILE} question {step}"] * 8,
            "completion": [f"answer {step} {i}" for i in range(8)],
            "exact_match": [0.25] * 7 + [None],
            "reward": [0.25] * 8,
            "advantage": [1.375] * 8,
            "num_tokens": [5] * 8,
            "is_finished": [False] * 8,
        }
        tables.keep(step - 1, rollouts, ["exact_match"])
    join_tables(tables.folder, tmp_path / "reports" / "grpo" / "rollouts" / "rollouts.parquet")
    (tmp_path / "reports" / "grpo" / "curve.csv").write_text("step,train/reward\n1,0.1\n2,0.3\n")
    verified = "step,train/reward,train/rewards/verifier/mean\n1,0.1,0.5\n2,0.3,0.2\n"
    (tmp_path / "reports" / "ppo" / "curve.csv").write_text(verified)
    page = Page(write_report(tmp_path, run).read_text())
    for part in (
        "question 1",
        "answer 1 0",
        "answer 5 3",
        "answer 9 3",
        "exact_match 0.250",
        "advantage 1.375",
        "What is rewarded, and what is right",
        "cut off",
    ):
        assert part in page.text, part
    assert "answer 1 4" not in page.text  # four of the first, the middle and the last step
    assert "question 2" not in page.text
    assert "off: prepare.preferences is null" in page.text
    assert "script" not in page.tags


def test_a_report_needs_nothing_but_itself(html):
    assert_harmless(Page(html))
    assert "://" not in html
    assert "url(" not in html.replace("url(#", "")
    assert "@import" not in html


def test_identifiers_stand_once_and_those_referred_to_are_there(html):
    page = Page(html)
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    referred = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
    referred |= {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes}
    assert referred <= set(identifiers)


def test_a_report_can_be_read_without_seeing_it(html):
    page = Page(html)
    assert not page.unbalanced
    assert all(len(svg["aria-label"]) > 20 and svg["role"] == "img" for svg in page.all("svg"))
    assert page.tags.count("h1") == page.tags.count("main") == page.tags.count("nav") == 1
    headings = [int(tag[1]) for tag in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    assert page.tags.count("caption") == page.tags.count("table")
    assert all("scope" in attributes for attributes in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"
    contents = {a["href"] for a in page.all("a")}
    assert {f"#{part}" for part in ("run", "data", "losses", "training", "tradeoffs", "samples", "costs")} <= contents


def test_hostile_text_from_data_and_configs_is_escaped(tmp_path):
    run = make_checkout(tmp_path, HOSTILE)
    without_curves(tmp_path)
    page = Page(write_report(tmp_path, run).read_text())
    assert_harmless(page)
    assert HOSTILE in page.text.replace("\n", " ")
    assert "49" not in page.text.replace("{{ 7 * 7 }}", "").split()


def test_what_is_missing_is_said(tmp_path):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    stages = (StageSummary("prepare", "failed", 3.0), StageSummary("sft", "not started", 0.0))
    page = Page(write_report(tmp_path, RunSummary("broken", {}, stages, now, now)).read_text())
    for missing in ("summary.json", "sft/curve.csv", "evaluation.json", "samples.json", "dvc.lock"):
        assert re.search(rf"{re.escape(missing)} is not there", page.text), missing
    for said in ("failed", "not started", "no requirements.lock", "not in a git repository"):
        assert said in page.text


def test_a_broken_file_counts_as_missing(tmp_path):
    run = make_checkout(tmp_path)
    without_curves(tmp_path)
    (tmp_path / "reports" / "evaluate" / "files" / "evaluation.json").write_text("{")
    assert "evaluation.json is not there" in Page(write_report(tmp_path, run).read_text()).text


def test_figures_take_the_colours_of_the_page():
    svg = themed(figures.curves({"loss": ([1, 2], [3.0, 1.0])}, "loss"))
    assert "var(--series-0)" in svg
    assert "var(--text)" in svg
    assert not [colour for colour in (*figures.INK.values(), figures.SERIES[0]) if colour in svg]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<script>alert(1)</script>", "<script>"),
        ("<foreignObject/>", "<foreignObject>"),
        ('<g onclick="alert(1)"/>', "onclick"),
        ('<use href="https://example.org/x.svg#a"/>', "href"),
        ('<rect style="fill: url(https://example.org/x)"/>', "outside"),
        ("<style>* { background: url(//example.org) }</style>", "outside"),
        ("<g>", "no XML"),
    ],
)
def test_a_figure_that_was_tampered_with_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        themed(f'<svg xmlns="http://www.w3.org/2000/svg">{content}</svg>')


def test_a_refused_figure_leaves_the_report_whole(tmp_path):
    run = make_checkout(tmp_path)
    without_curves(tmp_path)
    figure = tmp_path / "reports" / "evaluate" / "files" / "figures" / "accuracy.svg"
    figure.write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    page = Page(write_report(tmp_path, run).read_text())
    assert "script" not in page.tags
    assert page.tags.count("svg") == 3 + 6
    assert "figures that are not what they should be" in page.text


def test_numbers_are_written_for_readers():
    assert [number(v) for v in (None, 1234, 0.61254, 1.0, 12345.6, 0.00012, "x")] == [
        *("–", "1,234", "0.613", "1.000", "12,346", "1.2e-04", "x"),
    ]
    assert [duration(s) for s in (4.16, 187, 7387)] == ["4.2 s", "3:07", "2:03:07"]


def test_prompts_are_shown_turn_by_turn():
    assert prompt_parts("2 + 2 =") == [("", "2 + 2 =")]
    assert prompt_parts([{"role": "user", "content": "hi"}]) == [("user", "hi")]
