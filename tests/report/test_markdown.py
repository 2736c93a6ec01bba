"""The summary for a pull request, against a commit whose metrics DVC keeps."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from tasks.report_markdown import read_revision, write_markdown
from tasks.summary import RunSummary, StageSummary
from tests.report.page import HOSTILE
from tests.stages.checkouts import environment
from tuneline.errors import TunelineError

DVC_YAML = """\
stages:
  evaluate:
    cmd: python make.py
    deps: [make.py]
    params: [dpo]
    metrics: [reports/evaluate/metrics.json]
"""
MAKE = """\
import json, pathlib, yaml
beta = yaml.safe_load(open('params.yaml'))['dpo']['beta']
path = pathlib.Path('reports/evaluate/metrics.json')
path.parent.mkdir(parents=True, exist_ok=True)
values = {'dpo/accuracy': beta, 'dpo/accuracy_low': beta - 0.1, 'dpo/accuracy_high': beta + 0.1, 'dpo/kl': 1.5}
path.write_text(json.dumps({**values, 'best_of_4/accuracy': 2 * beta, 'num_prompts': 8}))
"""


class Checkout:
    """A checkout with DVC, and one stage that leaves metrics."""

    def __init__(self, root):
        self.root = root
        (root / "dvc.yaml").write_text(DVC_YAML)
        (root / "make.py").write_text(MAKE)
        (root / ".gitignore").write_text("/reports/\n/.work/\n")
        self.call("git", "init", "-q")
        self.call(sys.executable, "-m", "dvc", "init", "-q")

    def call(self, *command):
        done = subprocess.run(command, cwd=self.root, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def make(self, beta):
        (self.root / "params.yaml").write_text(
            yaml.safe_dump({"name": "line", "dpo": {"beta": beta}, "files": {"a": "b"}})
        )
        self.call(sys.executable, "-m", "dvc", "repro", "-q")

    def commit(self):
        self.call("git", "add", "-A")
        self.call("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "Run")

    @property
    def run(self):
        now = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
        config = yaml.safe_load((self.root / "params.yaml").read_text())
        stage = StageSummary(
            "evaluate", "ran", 12.0, json.loads((self.root / "reports/evaluate/metrics.json").read_text())
        )
        return RunSummary("line", config, (stage,), now, now + timedelta(seconds=61))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Committed with a beta of 0.5, made anew with 0.8."""
    made = Checkout(tmp_path_factory.mktemp("line"))
    made.make(0.5)
    made.commit()
    made.make(0.8)
    return made


def rows(markdown):
    """The cells of every table row by the first of them."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("|").split(" | ")] for line in lines)}


def test_differences_to_a_revision(checkout):
    markdown = write_markdown(checkout.root, checkout.run, read_revision(checkout.root, "HEAD", ["evaluate"]))
    assert markdown.startswith("## line: finished\n")
    table = rows(markdown)
    assert table["`dpo/accuracy`"] == ["0.500 (0.400 to 0.600)", "0.800 (0.700 to 0.900)", "**+0.300**"]
    assert table["`dpo/kl`"] == ["1.500", "1.500", "0"]
    assert table["`dpo.beta`"] == ["`0.5`", "`0.8`"]  # the setting
    assert "`files.a`" not in markdown
    assert table["evaluate"][:3] == ["`best_of_4/accuracy`", "1.000", "1.600"]  # folded, as it differs
    assert "num_prompts" not in markdown  # which does not


def test_a_run_alone(checkout):
    markdown = write_markdown(checkout.root, checkout.run)
    assert rows(markdown)["`dpo/accuracy`"] == ["0.800 (0.700 to 0.900)"]
    assert "Difference" not in markdown
    assert "1:01; 1 of 1 stages ran" in markdown


def test_unknown_revisions_are_told(checkout, tmp_path):
    with pytest.raises(TunelineError, match="nowhere is no commit"):
        read_revision(checkout.root, "nowhere", ["evaluate"])
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "file").touch()
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "x"], cwd=tmp_path, check=True)
    with pytest.raises(TunelineError, match=r"has no dvc\.lock"):
        read_revision(tmp_path, "HEAD", ["evaluate"])


def test_names_and_errors_cannot_break_out(tmp_path):
    now = datetime(2026, 1, 2, tzinfo=UTC)
    error = f"{HOSTILE}\n```\n# a heading\n````"
    stages = (
        StageSummary("sft", "failed", 3.0, error=error),
        StageSummary("dpo", "ran", 1.0, {f"eval/{HOSTILE}|x\n`y`": 1.0}),
    )
    (tmp_path / "reports" / "dpo").mkdir(parents=True)
    (tmp_path / "reports" / "dpo" / "metrics.json").write_text(json.dumps(stages[1].metrics))
    run = RunSummary(f"{HOSTILE}|\n# x", {}, stages, now, now, again="tuneline run x.yaml")
    markdown = write_markdown(tmp_path, run)
    fence = "`" * 5
    assert f"{fence}text\n{error}\n{fence}" in markdown
    outside = markdown.replace(error, "")
    outside = "\n".join(line for line in outside.splitlines() if "`" not in line)
    assert "<script>" not in outside
    assert outside.count("\n# ") == 0
    table = [line for line in markdown.splitlines() if line.startswith("| `eval/")]
    assert len(table) == 1
    assert table[0].count(" | ") == 1
    assert "Go on with `tuneline run x.yaml`." in markdown


def test_a_summary_is_short_enough_for_a_comment(tmp_path):
    now = datetime(2026, 1, 2, tzinfo=UTC)
    metrics = {f"{'long' * 40}/{i}": 1.0 for i in range(190)}
    stages = []
    for name in ("sft", "dpo", "grpo"):
        (tmp_path / "reports" / name).mkdir(parents=True)
        (tmp_path / "reports" / name / "metrics.json").write_text(json.dumps(metrics))
        stages.append(StageSummary(name, "ran", 1.0, metrics))
    markdown = write_markdown(tmp_path, RunSummary("line", {}, tuple(stages), now, now))
    assert len(markdown) < 65_536
    assert "<details>" in markdown
    failed = [StageSummary(f"stage{i}", "failed", 1.0, error="x" * 5000) for i in range(12)]
    markdown = write_markdown(tmp_path, RunSummary("line", {}, (*stages, *failed), now, now))
    assert len(markdown) < 65_536
    assert "All metrics would make this too long" in markdown
    failed *= 3
    markdown = write_markdown(tmp_path, RunSummary("line", {}, (*stages, *failed), now, now))
    assert len(markdown) < 65_536
    assert "characters more." in markdown


def test_a_stage_that_is_off_has_not_run(tmp_path):
    stages = (StageSummary("sft", "ran", 2.0), StageSummary("ppo", "ran", 1.5, off="off: there is no ppo section"))
    text = write_markdown(
        tmp_path, RunSummary("toy", {}, stages, datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC))
    )
    assert "1 of 2 stages ran" in text
    assert "| ppo | off | – | there is no ppo section |" in text
