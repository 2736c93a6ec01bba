"""From a metric, a version or a file back to source bytes."""

import hashlib
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from stages.hashes import file_hash
from stages.loading import load_config, write_params
from tasks.lineage import Lineage, trace
from tasks.lineage_drawing import as_page, as_svg
from tests.flows.checkouts import Checkout
from tests.lineage.checkouts import FLOW_RUN, WEIGHTS, git, register, repro
from tuneline.errors import TunelineError

# DVC 3.67 reads a value that pygtrie 2.5 deprecates; MLflow leaves SQLite connections to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def in_checkout(traced: Checkout, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(traced.path)
    for name in ("MLFLOW_TRACKING_URI", "TUNELINE_CALLED_FROM"):
        monkeypatch.delenv(name, raising=False)
    yield traced.path
    import mlflow

    mlflow.set_tracking_uri(None)


def stages(lineage: Lineage) -> list[str]:
    return [step.record.stage for step in lineage.steps]


def test_a_metric_leads_back_to_the_bytes_of_the_sources(in_checkout: Path):
    lineage = trace(in_checkout, "evaluate.loss")
    assert (lineage.target.kind, lineage.target.value) == ("metric", 0.5)
    assert lineage.target.content.md5 == file_hash(in_checkout / "reports/evaluate/metrics.json")
    assert stages(lineage)[:2] == ["prepare", "sft"]
    assert set(stages(lineage)) == {"prepare", "sft", "reward", "dpo", "evaluate"}
    (source,) = [one for one in lineage.steps[0].sources if one.path]
    text = (in_checkout / "toy.jsonl").read_bytes()
    assert (source.role, source.path, source.size, source.in_git) == ("preferences", "toy.jsonl", len(text), True)
    assert source.md5 == hashlib.md5(text).hexdigest()
    assert source.sha256 == hashlib.sha256(text).hexdigest()


def test_a_version_leads_to_run_commit_settings_code_and_weights(in_checkout: Path):
    lineage = trace(in_checkout, "models:/toy-dpo/1")
    assert stages(lineage) == ["prepare", "sft", "dpo"]
    step = lineage.steps[-1]
    lock = yaml.safe_load((in_checkout / "dvc.lock").read_text())["stages"]["dpo"]
    assert lineage.target.content.md5 == lock["outs"][0]["md5"]
    assert step.run.commit == git(in_checkout, "rev-parse", "HEAD")
    assert step.run.patch == "none"
    assert step.run.flow_run == FLOW_RUN
    assert step.settings["dpo.launch.timeout_hours"] == 24.0
    assert set(step.record.code) == {"toy_stage.py"}
    assert [weights.sha256 for weights in step.weights] == [hashlib.sha256(WEIGHTS).hexdigest()]
    assert step.commits == (git(in_checkout, "rev-parse", "HEAD"),)
    assert [one.uri for one in step.versions] == ["models:/toy-dpo/1"]
    assert trace(in_checkout, "toy-dpo@challenger").target.version == lineage.target.version


def test_a_version_from_before_is_traced_though_dvc_lock_has_moved_on(traced: Checkout, in_checkout: Path):
    before = trace(in_checkout, "models:/toy-dpo/1").steps[-1].record
    write_params(load_config("toy.yaml", ["dpo.launch.timeout_hours=2", "sft.launch.timeout_hours=3"]))
    repro(traced)
    register(traced, "dpo")
    old = trace(in_checkout, "models:/toy-dpo/1")
    assert old.steps[-1].record == before
    assert old.steps[-1].settings["dpo.launch.timeout_hours"] == 24.0
    assert old.steps[1].settings["sft.launch.timeout_hours"] == 1.0
    assert old.steps[-1].record.origin != "dvc.lock"
    new = trace(in_checkout, "toy-dpo@challenger")
    assert new.target.version.version == "2"
    assert [step.settings.get("sft.launch.timeout_hours") for step in new.steps] == [None, 3.0, None]
    assert {step.record.origin for step in new.steps} == {"dvc.lock"}


def test_a_file_within_an_output_and_a_source_are_targets_too(in_checkout: Path):
    lineage = trace(in_checkout, "models/sft/model.safetensors")
    assert stages(lineage) == ["prepare", "sft"]
    assert lineage.target.content.md5 == hashlib.md5(WEIGHTS).hexdigest()
    source = trace(in_checkout, "toy.jsonl")
    assert (source.steps, source.read_by) == ((), ("prepare",))
    (in_checkout / "models/sft/result.txt").write_text("changed by hand")
    assert "not what dvc.lock records" in trace(in_checkout, "models/sft/result.txt").target.note


def test_what_is_made_on_the_machine_ends_in_its_seed(in_checkout: Path):
    lock = yaml.safe_load((in_checkout / "dvc.lock").read_text())
    params = lock["stages"]["prepare"]["params"]["params.yaml"]
    params["prepare"]["preferences"] = {"synthetic": {"num_rows": 48}}
    params["model"] = {"init": {"model_type": "qwen2"}}
    (in_checkout / "dvc.lock").write_text(yaml.safe_dump(lock))
    sources = trace(in_checkout, "prepare").steps[0].sources
    assert [(one.role, one.seed, one.text) for one in sources if one.seed] == [
        ("preferences", 17, "made on the machine from seed 17: 48 rows"),
        ("model", 17, "made on the machine from seed 17: qwen2"),
    ]


def test_a_metric_may_be_named_without_its_stage_if_no_other_has_it(in_checkout: Path):
    with pytest.raises(TunelineError, match=r"loss is a metric of several stages: prepare\.loss, sft\.loss, "):
        trace(in_checkout, "loss")
    for stage in ("prepare", "reward", "dpo", "evaluate"):
        (in_checkout / "reports" / stage / "metrics.json").unlink()
    assert trace(in_checkout, "loss").target == trace(in_checkout, "sft.loss").target


def test_what_nobody_has_noted_is_one_message(in_checkout: Path):
    with pytest.raises(TunelineError, match="did you mean evaluate"):
        trace(in_checkout, "evaluat.loss")
    with pytest.raises(TunelineError, match=r"evaluate has no metric lss; there are loss"):
        trace(in_checkout, "evaluate.lss")
    with pytest.raises(TunelineError, match=r"MLflow has no toy-dpo/9 .*toy-dpo, toy-sft"):
        trace(in_checkout, "models:/toy-dpo/9")
    (in_checkout / "mlflow.db").unlink()
    lineage = trace(in_checkout, "dpo")
    assert "MLflow has no run" in lineage.problem
    assert lineage.steps[-1].run is None


def test_the_drawing_is_whole_by_itself(in_checkout: Path):
    lineage = trace(in_checkout, "models:/toy-dpo/1")
    svg = as_svg(lineage)
    drawn = ElementTree.fromstring(svg)
    titles = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text") if one.get("class") == "title"]
    assert set(titles) == {"models:/toy-dpo/1", "prepare", "sft", "dpo", "preferences"}
    page = as_page(lineage)
    for text in (svg, page):
        assert not re.search(r"<script|@import|(?:href|src)=[\"']?(?!#)|url\((?!#)", text)
    for step in lineage.steps:
        assert all(out.md5 in page for out in step.record.outs.values())
    assert lineage.steps[-1].weights[0].sha256 in page


def test_names_from_outside_are_escaped_in_the_page(in_checkout: Path):
    lock = (in_checkout / "dvc.lock").read_text()
    (in_checkout / "dvc.lock").write_text(lock.replace("path: toy.jsonl", "path: <script>alert(1)</script>.jsonl"))
    lineage = trace(in_checkout, "dpo")
    assert "<script" not in as_page(lineage) + as_svg(lineage)
    assert "&lt;script&gt;" in as_page(lineage)


def test_the_command_prints_a_tree_or_json_and_draws(traced: Checkout):
    shown = traced.call("lineage", "evaluate.loss", "--draw", "reports/lineage.svg")
    assert "evaluate.loss = 0.5" in shown
    assert f"md5 {file_hash(traced.path / 'toy.jsonl')}" in shown
    assert (traced.path / "reports/lineage.svg").read_text().startswith("<svg")
    known = json.loads(traced.call("lineage", "models:/toy-dpo/1", "--json"))
    assert [run["stage"] for run in known["runs"]] == ["prepare", "sft", "dpo"]
    assert known["runs"][2]["inputs"]["models/sft"]["made_by"] == known["runs"][1]["key"]
    assert "use one of these endings" in traced.call("lineage", "dpo", "--draw", "a.png", exit_code=2)
