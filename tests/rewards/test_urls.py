"""Rewards from a server: what is sent, what is taken for an answer, and errors that name the URL."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tuneline.errors import ConfigError, RewardError
from tuneline.rewards import RewardFunctions, url_reward


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), content))
        status, answer = self.server.answer(content)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """A real server; `answer` takes the content of a request and returns status and body."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.daemon_threads = True
        running.requests = []
        running.answer = lambda content: (200, json.dumps({"rewards": [1.5, None]}).encode())
        running.url = f"http://127.0.0.1:{running.server_address[1]}/score"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def ask(reward):
    return reward(prompts=["p", "q"], completions=["a", "b"], completion_ids=[[1], [2]], answer=["x", "y"])


def test_prompts_completions_and_columns_are_sent_and_rewards_come_back(server):
    assert ask(url_reward(server.url)) == [1.5, None]
    path, headers, content = server.requests[0]
    assert path == "/score"
    assert headers["Content-Type"] == "application/json"
    assert content == {
        "prompts": ["p", "q"],
        "completions": ["a", "b"],
        "completion_ids": [[1], [2]],
        "columns": {"answer": ["x", "y"]},
    }


def test_a_token_comes_from_the_environment_alone(server, monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    ask(url_reward(server.url, token_variable="JUDGE_TOKEN"))
    assert server.requests[0][1]["Authorization"] == "Bearer secret"
    monkeypatch.delenv("JUDGE_TOKEN")
    with pytest.raises(ConfigError, match="JUDGE_TOKEN"):
        url_reward(server.url, token_variable="JUDGE_TOKEN")
    with pytest.raises(ConfigError, match="holds a password"):
        url_reward("http://user:secret@host/score")
    with pytest.raises(ConfigError, match="no address"):
        url_reward("ftp://host/score")


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, b"out of memory", "answered 500 Internal Server Error: out of memory"),
        (302, b"", "answered 302"),
        (200, b"<html>", "which is no JSON"),
        (200, b'{"scores": [1]}', "and not"),
        (200, b"[1, 2]", "and not"),
    ],
)
def test_answers_that_are_none_name_the_url_without_its_query(server, status, body, message):
    server.answer = lambda content: (status, body)
    with pytest.raises(RewardError, match=message) as caught:
        ask(url_reward(server.url + "?key=secret"))
    assert server.url in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_or_silent_is_named(server):
    with pytest.raises(RewardError, match=r"http://127.0.0.1:9/score cannot be reached"):
        ask(url_reward("http://127.0.0.1:9/score"))
    server.answer = lambda content: (time.sleep(1), (200, b"{}"))[1]
    with pytest.raises(TimeoutError, match=rf"{server.url} gave no answer in 0.2 s"):
        ask(url_reward(server.url, timeout=0.2))


def test_a_column_that_is_no_json_is_named(server):
    with pytest.raises(ConfigError, match="'image' cannot be sent"):
        url_reward(server.url)(prompts=["p"], completions=["c"], completion_ids=[[1]], image=[object()])


def test_a_url_serves_among_the_functions_and_a_bad_sample_costs_itself_alone(server):
    def answer(content):
        if "bad" in content["completions"]:
            return 500, b"bad"
        return 200, json.dumps({"rewards": [2] * len(content["completions"])}).encode()

    server.answer = answer
    rewards = RewardFunctions([server.url])
    assert rewards.names == ["127.0.0.1_score"]
    arguments = dict(prompts=["p"] * 3, completion_ids=[[1]] * 3, columns={})
    scores = rewards.start(completions=["a", "bad", "c"], **arguments).result()
    assert scores.values[[0, 2], 0].tolist() == [2, 2]
    assert scores.failures == {"127.0.0.1_score": 1}
    assert server.url in scores.reasons[0]


def test_a_server_that_cannot_be_reached_is_asked_once_a_batch():
    rewards = RewardFunctions(["http://127.0.0.1:9/score"])
    scores = rewards.start(prompts=["p"] * 50, completions=["c"] * 50, completion_ids=[[1]] * 50, columns={}).result()
    assert scores.failures == {"127.0.0.1_score": 50}
    assert len(scores.reasons) == 1
