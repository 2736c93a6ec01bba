"""What was decided stands in the report: promotion, gates, collected preferences; where there are files of them."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from stages.gates import GateError, Gates
from stages.schema_gates import GatesSection
from tasks.collection import open_store
from tasks.report import write_report
from tasks.report_markdown import write_markdown
from tests.evaluation.checkout import make_checkout
from tests.report.page import HOSTILE, Page, assert_harmless, without_curves
from tuneline.collection.pairs import Pair


@pytest.fixture
def run(tmp_path):
    made = make_checkout(tmp_path)
    without_curves(tmp_path)
    return made


def read(root, run):
    page = Page(write_report(root, run).read_text())
    assert_harmless(page)
    assert not page.unbalanced
    return page.text


def test_a_promotion_is_a_table(tmp_path, run):
    metric = {"name": "accuracy", "champion": 0.61, "challenger": 0.72, "difference": 0.11, "low": 0.05, "high": 0.17}
    decision = {
        "model": "line",
        "version": "4",
        "policy": "dpo",
        "champion": "2",
        "alias_moved": True,
        "by": "Ada",
        "reasons": ["the gain is clear", HOSTILE],
        "metrics": [{**metric, "verdict": "passes"}, {**metric, "name": "kl", "low": None, "verdict": HOSTILE}],
        "held_out_digest": "abc123",
        "at": "2026-01-02T03:04:05+00:00",
    }
    (tmp_path / "reports" / "promotion.json").write_text(json.dumps(decision))
    text = read(tmp_path, run)
    for part in (
        *("Promoted: line, version 4 (dpo) is the champion now , in place of version 2", "by Ada", "abc123"),
        *("accuracy 0.610 0.720 0.110 0.050 to 0.170 passes", "the gain is clear", HOSTILE, "Decisions"),
    ):
        assert part.replace(" ,", ",") in text.replace(" ,", ","), part
    markdown = write_markdown(tmp_path, run)
    assert "Version 4 promoted to champion (champion: version 2)" in markdown
    assert "<script>" not in markdown
    assert "earlier run" not in text
    assert "Decided in an earlier run" in read(tmp_path, replace(run, started=run.started + timedelta(days=1)))
    refused = {**decision, "alias_moved": False, "champion": None}
    (tmp_path / "reports" / "promotion.json").write_text(json.dumps(refused))
    assert "Not promoted: line, version 4 (dpo) stays a challenger" in read(tmp_path, run)


def test_gates_are_held_against_the_limits_of_the_run(tmp_path, run):
    work = tmp_path / ".work" / "dpo" / "0123"
    work.mkdir(parents=True)
    gates = Gates("dpo", work, GatesSection())
    gates.check("ended_answers", 0.9, "Few answers end.")
    with pytest.raises(GateError):
        gates.check("dpo_first_loss", 0.4, f"The first loss is far from ln 2. {HOSTILE}")
    text = read(tmp_path, run)
    for part in ("dpo ended_answers 0.900 at least 0.05 ✓ passed", "at most 0.05 ✗ stopped the stage", HOSTILE):
        assert part in text, part
    assert "Few answers end." not in text
    lax = replace(run, config={**run.config, "gates": {"dpo_first_loss": None}})
    assert "✗ stopped" not in read(tmp_path, lax)


def test_collected_preferences_show_who_agrees(tmp_path, run):
    pairs = [Pair(str(i), f"question {i} {HOSTILE}", "yes", f"no {HOSTILE}", "0", 1, {}) for i in range(4)]
    with open_store(tmp_path, run.name, None) as store:
        store.add_pairs(pairs)
        for annotator, choices in (("ada", "aab"), (HOSTILE, "abb")):
            for pair, choice in zip(pairs, choices, strict=False):
                store.add_label(pair.id, annotator, choice, how="person", client=f"{annotator}{pair.id}")
    text = read(tmp_path, run)
    for part in ("Collected preferences", "labels by person 6", "raw agreement 0.667", "labels of ada 3", HOSTILE):
        assert part in text, part


def test_without_decisions_there_is_no_such_part(tmp_path, run):
    text = read(tmp_path, run)
    assert "Decisions" not in text
    assert "Collected preferences" not in text
