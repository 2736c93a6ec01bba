"""A page stays within its size, whatever a run has left, and says what it leaves out."""

import json

from tasks import report as report_module
from tasks.report import render_report
from tasks.report_text import Limits
from tests.evaluation.checkout import make_checkout
from tests.report.page import Page, without_curves


def grow(root, num_samples=60, text="word & <word> " * 3000):
    path = root / "reports" / "evaluate" / "files" / "samples.json"
    sample = json.loads(path.read_text())[0]
    for answer in sample["answers"].values():
        answer["text"] = text
    path.write_text(json.dumps([sample] * num_samples))


def test_long_texts_and_many_samples_are_cut_and_counted(tmp_path):
    run = make_checkout(tmp_path)
    without_curves(tmp_path)
    grow(tmp_path)
    html = render_report(tmp_path, run)
    text = Page(html).text
    assert len(html.encode()) < 2 * 2**20
    assert "What this page leaves out" in text
    assert "12 samples" in text
    assert "characters more)" in text


def test_a_page_that_is_too_large_shows_less(tmp_path, monkeypatch):
    run = make_checkout(tmp_path)
    without_curves(tmp_path)
    grow(tmp_path)
    for figure in (tmp_path / "reports" / "evaluate" / "files" / "figures").iterdir():
        figure.write_text(f'<svg xmlns="http://www.w3.org/2000/svg"><text>{"x" * 390_000}</text></svg>')
    monkeypatch.setattr(report_module, "MOST_BYTES", 2 * 2**20)
    html = render_report(tmp_path, run)
    assert len(html.encode()) <= 2 * 2**20
    assert "7 figures that are too large" in Page(html).text


def test_smaller_limits_are_smaller_throughout():
    whole, quarter = vars(Limits()), vars(Limits().smaller(4))
    assert all(quarter[name] < whole[name] for name in whole if name != "left_out")
