"""The page in a real browser: nothing of it is wider than a phone, and its colours can be read."""

import json
import re
import subprocess

import pytest

from tasks.report import TEMPLATES, write_report
from tasks.report_index import keep_run, write_index
from tests.collection.browser import CHROMIUM, FLAGS
from tests.evaluation.checkout import make_checkout

# The page forbids scripts; the copy that is measured gets one, in a frame as wide as the screen to measure for.
MEASURE = """\
<!DOCTYPE html><body style="margin:0"><iframe id="f" style="border:0;width:WIDTHpx;height:900px"></iframe><script>
const frame = document.getElementById("f");
frame.onload = () => {
  const page = frame.contentDocument, wide = [];
  page.querySelectorAll("details").forEach(d => d.open = true);
  const width = page.documentElement.clientWidth;
  for (const e of page.body.querySelectorAll("*"))
    if (e.getBoundingClientRect().right > width + 1 && !e.closest(".scroll, pre, .text, svg, .skip"))
      wide.push(e.tagName + "." + e.className);
  const told = [width, page.documentElement.scrollWidth, page.body.scrollHeight > 2000, wide.join(" ")];
  document.body.dataset.told = told.join("|");
};
frame.srcdoc = SOURCE;
</script>"""


def measure(path, width, tmp_path):
    """Width of the screen and of the page in it, whether the page was laid out, and what juts out."""
    source = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text())
    harness = tmp_path / f"{path.stem}-{width}.html"
    script = json.dumps(source).replace("</", "<\\/")
    harness.write_text(MEASURE.replace("WIDTH", str(width)).replace("SOURCE", script))
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}/profile", "--window-size=1600,1000", "--dump-dom"]
    command += ["--virtual-time-budget=2000"]
    done = subprocess.run([*command, f"file://{harness}"], capture_output=True, text=True, timeout=120)
    told = re.search(r'data-told="([^"]*)"', done.stdout)
    assert told, done.stderr[-2000:]
    return told[1].split("|")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_no_page_is_wider_than_the_screen(tmp_path):
    run = make_checkout(tmp_path, "W" * 300)  # without a place to break
    report = write_report(tmp_path, run)
    keep_run(tmp_path, run)
    for width in (400, 1400):
        assert measure(report, width, tmp_path) == [str(width), str(width), "true", ""]
    assert measure(write_index(tmp_path), 400, tmp_path)[:2] == ["400", "400"]


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """As WCAG 2 defines it, from 1 to 21; text needs 4.5."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme):
    from tuneline.evaluation.figures import INK

    style = (TEMPLATES / "style.css.jinja").read_text()
    for name, colour in INK.items():
        style = style.replace(f"{{{{ inks.{name} }}}}", colour)
    before, dark, after = style.partition("@media screen and (prefers-color-scheme: dark)")
    assert dark
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", before if scheme == "light" else after))
    inks = ["text", "muted", "good", "bad", "link", *(f"series-{i}" for i in range(6))]
    for ink in inks:
        for behind in ("page", "background"):
            assert contrast(colours[ink], colours[behind]) >= 4.5, (ink, behind)
    for ink, behind in (("text", "code"), ("new-ink", "new"), ("gone-ink", "gone")):
        assert contrast(colours[ink], colours[behind]) >= 4.5, (ink, behind)
