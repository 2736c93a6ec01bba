"""`tuneline collect` as a user types it."""

import json
import os
import subprocess
import sys
from urllib.parse import urlsplit

from tests.collection.pairs import ROOT, Server, some_pairs
from tuneline.collection.pairs import write_pairs


def environment(tmp_path):
    return {
        **os.environ,
        "TUNELINE_CALLED_FROM": str(tmp_path),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PYTHONUNBUFFERED": "1",
    }


def start(tmp_path) -> Server:
    command = ["collect", "serve", "--db", "labels.db", "--pairs", "pairs.jsonl", "--shared", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", *command],
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.strip().startswith("http://"):
            return Server(process, line.strip())
    raise AssertionError(f"it ended with {process.wait()}")


def call(tmp_path, *arguments):
    command = [sys.executable, "-m", "flows", "collect", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_labels_outlive_the_command_the_address_stays_and_they_are_exported(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", some_pairs(3))
    server = start(tmp_path)
    first, second, _ = server.pairs()
    assert server.label(first["pair"], "left") == "stored"
    server.kill()
    again = start(tmp_path)
    assert again.address == server.address
    assert urlsplit(again.address).hostname == "127.0.0.1"
    assert again.label(second["pair"], "tie", client="client-0002") == "stored"
    again.process.terminate()
    rest, _ = again.process.communicate(timeout=60)
    assert "2 of 3 pairs are labelled, all of it in" in rest
    assert again.process.returncode == 0

    code, shown = call(tmp_path, "export", "out.jsonl", "--db", "labels.db")
    assert (code, "1 preferences; 1 ties, 0 pairs skipped and 1 without a label" in " ".join(shown.split())) == (
        0,
        True,
    )
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (row["pair"], row["chosen"], row["annotator"]) == (first["pair"], first["left"], "anna")
    assert json.loads((tmp_path / "out.ties.jsonl").read_text())["pair"] == second["pair"]
    assert "with a preference or a tie" in call(tmp_path, "status", "--db", "labels.db")[1]


def test_what_is_not_there_is_said_in_a_line_and_not_made(tmp_path):
    code, shown = call(tmp_path, "status", "--db", "none.db")
    assert (code, shown) == (2, "tuneline: none.db does not exist; name the file of a store.\n")
    assert not (tmp_path / "none.db").exists()
