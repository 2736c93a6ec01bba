"""Judges behind an address, asked over a real connection to a server of the test's own."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tuneline.errors import ConfigError
from tuneline.judges import OpenAIPairwiseJudge, UrlPairwiseJudge

PROMPTS = [f"what is {i}?" for i in range(6)]
PAIRS = [[f"it is {i}", f"no idea {i}"] for i in range(6)]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers.get("Authorization"), content))
        status, answer = self.server.answer(content)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.daemon_threads = True
        running.requests = []
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def shorter_pairs(content):
    return 200, {"verdicts": [int(len(b) < len(a)) for a, b in content["completions"]]}


def said(text):
    return 200, {"choices": [{"message": {"content": text}}]}


def knows(content):
    """Prefers the answer that is not 'no idea'."""
    first = content["messages"][0]["content"].partition("[Answer 0]")[2].partition("[Answer 1]")[0]
    return said("1" if "no idea" in first else "0")


def openai(server, **options):
    return OpenAIPairwiseJudge(base_url=f"{server.url}/v1", token_variable=None, **options)


def test_a_server_judges_all_pairs_at_once(server):
    server.answer = shorter_pairs
    assert UrlPairwiseJudge(f"{server.url}/judge").judge(PROMPTS, PAIRS) == [0] * 6
    assert len(server.requests) == 1
    assert server.requests[0][2]["prompts"] == PROMPTS


@pytest.mark.parametrize(
    "answer", [(500, {}), (200, {"verdicts": [0]}), (200, [0] * 6), (200, {"verdicts": ["0"] * 6})], ids=str
)
def test_an_answer_that_is_none_costs_its_pairs_and_is_counted(server, answer):
    server.answer = lambda content: answer
    judge = UrlPairwiseJudge(server.url)
    assert judge.judge(PROMPTS, PAIRS) == [-1] * 6
    assert judge.num_failures == 6


def test_a_server_that_is_not_there_costs_its_pairs():
    assert UrlPairwiseJudge("http://127.0.0.1:9/judge").judge(PROMPTS[:1], PAIRS[:1]) == [-1]


def test_a_chat_model_is_asked_about_each_pair(server, monkeypatch):
    server.answer = knows
    monkeypatch.setenv("JUDGE_KEY", "abc")
    judge = OpenAIPairwiseJudge("some-model", base_url=f"{server.url}/v1/", token_variable="JUDGE_KEY")
    assert judge.judge(PROMPTS, PAIRS) == [0] * 6
    path, authorization, content = server.requests[0]
    assert (path, authorization, content["model"]) == ("/v1/chat/completions", "Bearer abc", "some-model")
    assert content["max_tokens"] == 1


def test_requests_beyond_the_limit_are_not_sent(server, caplog):
    server.answer = knows
    judge = openai(server, max_requests=4)
    assert judge.judge(PROMPTS, PAIRS) == [0, 0, 0, 0, -1, -1]
    assert judge.judge(PROMPTS[:1], PAIRS[:1]) == [-1]
    assert len(server.requests) == 4
    assert judge.num_failures == 3
    assert caplog.text.count("max_requests=4 is used up") == 1


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("0", 0), (" 1\n", 1), ("**1**", 1), ("The better is 0.", 0), ("10", -1), ("both", -1), ("", -1)],
)
def test_what_a_chat_model_says_is_read_as_a_verdict_or_none(server, text, verdict):
    server.answer = lambda content: said(text)
    assert openai(server).judge(PROMPTS[:1], PAIRS[:1], shuffle_order=False) == [verdict]


def test_completions_with_marks_and_messages_go_in_as_they_are(server):
    server.answer = knows
    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why {response1}?"}]
    pair = [[{"role": "assistant", "content": "{prompt}"}], [{"role": "assistant", "content": "no idea"}]]
    assert openai(server).judge([prompt], [pair]) == [0]
    text = server.requests[0][2]["messages"][0]["content"]
    assert "system: be brief\n\nuser: why {response1}?" in text
    assert "\n{prompt}\n" in text


def test_what_cannot_work_is_told_before_any_request(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"OPENAI_API_KEY.*export it"):
        OpenAIPairwiseJudge()
    with pytest.raises(ConfigError, match="response1"):
        openai(server, system_prompt="{prompt} {response0}")
    with pytest.raises(ConfigError, match="no address"):
        UrlPairwiseJudge("ftp://host")
