"""The loop: its record by itself, and with real DVC and Prefect on stages that are toys."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from stages.schema import PipelineConfig
from tasks.collection import open_store
from tasks.rounds import Rounds
from tests.collection.pairs import some_pairs
from tests.flows.checkouts import CONFIG, environment
from tuneline.errors import StageError

COLLECT = """\
  collect:
    cmd: python toy_collect.py
    deps: [toy_collect.py, models/dpo]
    params: [seed, collect]
    outs: [data/collected]
    metrics: [reports/collect/metrics.json: {cache: false}]
"""


@pytest.fixture
def record(tmp_path, monkeypatch):
    """An empty DVC repository with the toy line's config, and a function that opens the loop of it anew."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.jsonl").touch()
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, env=environment(tmp_path, tmp_path), check=True)

    def opened(**sections):
        settings = yaml.safe_load(CONFIG) | {"collect": {"labels": "verifier"}} | sections
        return Rounds(tmp_path, PipelineConfig.model_validate(settings))

    return opened


def evaluated(root, **metrics):
    (root / "reports" / "evaluate").mkdir(parents=True, exist_ok=True)
    (root / "reports" / "evaluate" / "metrics.json").write_text(json.dumps(metrics))


def test_a_record_is_read_as_it_was_left_and_other_settings_are_refused(record, tmp_path):
    loop = record()
    with open_store(tmp_path, "toy", None) as store:
        with pytest.raises(StageError, match="no preference to learn from"):
            loop.keep_data(1, store)
        evaluated(tmp_path, **{"dpo/accuracy": 0.5, "dpo/accuracy_low": 0.4, "dpo/accuracy_high": 0.6})
        loop.finish(0, store, "verifier")
        store.add_pairs([*some_pairs(3), *some_pairs(5, round=2)[3:]])
        for number, pair in enumerate(store.pairs()):
            store.add_label(pair.id, "verifier", "tie" if number == 0 else "a", how="verifier")
        for number, accuracy in ((1, 0.6), (2, 0.7)):
            loop.keep_data(number, store)
            evaluated(tmp_path, **{"dpo/accuracy": accuracy})
            loop.finish(number, store, "verifier")
    again = record()
    assert again.done == loop.done
    assert [again.is_done(number) for number in range(4)] == [True, True, True, False]
    rounds = [again.done[number] for number in range(3)]
    assert [(one.pairs, one.preferences, one.ties, one.collected) for one in rounds] == [
        (0, 0, 0, 0),
        (3, 2, 1, 2),
        (2, 2, 0, 4),  # the file of a round holds what all rounds up to it collected
    ]
    assert again.overrides(2) == ["prepare.collected=data/rounds/toy/round-002.jsonl"]
    header, rows = again.table()
    assert dict(zip(header, rows[0], strict=True))["dpo accuracy"] == "0.500 (0.400 to 0.600)"
    report = tmp_path / "reports" / "rounds" / "toy"
    assert sorted(path.name for path in report.iterdir()) == ["rounds.csv", "rounds.md", "rounds.svg"]
    assert (report / "rounds.md").read_text().count("\n") == 5
    data = tmp_path / "data" / "rounds" / "toy"
    assert (data / "round-002.jsonl.dvc").is_file()
    assert len((data / "round-001.ties.jsonl").read_text().splitlines()) == 1
    with (data / "round-002.jsonl").open("a") as file:
        file.write("{}\n")
    assert not again.is_done(2)  # another file makes another round
    record(collect={"labels": "person", "min_labels": 2}, evaluate={"max_new_tokens": 9})
    with pytest.raises(StageError, match=r"begun with other settings \(dpo\.peft: none -> .*another name"):
        record(dpo={"peft": {"r": 2}})


@pytest.fixture
def toy(checkout, tmp_path):
    """The toy line with a stage collect."""
    shutil.copy(Path(__file__).parent / "toy_collect.py", checkout.path)
    with (checkout.path / "dvc.yaml").open("a") as file:
        file.write(COLLECT)
    with (checkout.path / "toy.yaml").open("a") as file:
        file.write("collect: {labels: verifier}\n")
    return checkout


def call(toy, *arguments):
    """A command that runs several lines, one after the other."""
    process = toy.start(*arguments)
    shown, _ = process.communicate(timeout=800)
    assert process.returncode == 0, shown
    return shown


def rounds_of(toy):
    return json.loads((toy.path / "data/rounds/toy/rounds.json").read_text())["rounds"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_rounds_with_a_verifier_and_a_loop_that_was_killed_goes_on(toy):
    first = toy.start("rounds", "toy.yaml", "--rounds", "2")
    limit = time.monotonic() + 800
    while not (toy.path / "data/rounds/toy/round-001.jsonl").is_file():
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    shown = call(toy, "rounds", "toy.yaml", "--rounds", "2")
    assert "Round 0 is done already" in shown
    assert (toy.path / "collect.tries").read_text().split() == ["1", "2"]
    assert [(one["number"], one["preferences"], one["ties"]) for one in rounds_of(toy)] == [
        (0, 0, 0),
        (1, 2, 1),
        (2, 2, 1),
    ]
    lines = (toy.path / "data/rounds/toy/round-002.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 1, 2, 2]
    assert all(json.loads(line)["chosen"] == "good" for line in lines)
    again = call(toy, "rounds", "toy.yaml", "--rounds", "2")
    assert again.count("is done already") == 3
    assert (toy.path / "collect.tries").read_text().split() == ["1", "2"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_loop_waits_for_people_and_goes_on_by_itself(toy):
    process = toy.start("rounds", "toy.yaml", "--rounds", "1", "--labels", "person")
    address = ""
    while not address:
        line = process.stdout.readline()
        assert line, "the loop ended without a page"
        found = re.search(r"Label here: (http://\S+)", line)
        address = found[1] if found else ""
    port, token = urlsplit(address).port, parse_qs(urlsplit(address).query)["token"][0]

    def ask(method, path, body=None):
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        headers = {"Cookie": f"tuneline_label_{port}={token}", "Content-Type": "application/json"}
        headers |= {"Origin": f"http://127.0.0.1:{port}"} if body else {}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    shown = [pair for _ in range(3) for pair in ask("GET", "/api/pairs?annotator=anna&limit=20")["pairs"]]
    for number, pair in enumerate({one["pair"]: one for one in shown}.values()):
        choice = "skip" if number == 0 else "left" if pair["left"] == "good" else "right"
        body = {"annotator": "anna", "pair": pair["pair"], "choice": choice, "client": f"client-{number}"}
        assert ask("POST", "/api/labels", body)["outcome"] == "stored"
    rest, _ = process.communicate(timeout=800)
    assert process.returncode == 0, rest
    assert "3 of 3 pairs are answered" in rest
    lines = (toy.path / "data/rounds/toy/round-001.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["annotator"], row["how"], row["chosen"]) for row in rows] == [("anna", "person", "good")] * 2
    status = toy.call("collect", "status")
    assert re.search(r"answered\s+3\s", status)
    exported = toy.call("collect", "export", "out.jsonl")
    assert "2 preferences; 0 ties, 1 pairs skipped and 0 without a label" in " ".join(exported.split())
    assert toy.call("collect", "export", "out.csv", exit_code=2).startswith("tuneline: out.csv: give a file")
