"""What goes wrong between the trainer and a server, each named with the server and the endpoint."""

import threading
import time

import pytest

from tests.ports import free_port
from tests.vllm.small_server import SmallServer, healthy
from tuneline.errors import ConfigError, RolloutError
from tuneline.rollout import vllm_client
from tuneline.rollout.vllm_client import VLLMClient


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(vllm_client, "_RETRY_AFTER", (0.01, 0.01))
    monkeypatch.setattr(vllm_client, "_POLL_SECONDS", 0.01)


def test_a_refused_connection_names_server_and_endpoint():
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RolloutError, match=rf"{url}: POST /pause: ConnectionRefusedError"):
        VLLMClient(url).post("/pause", {}, is_idempotent=True)


def test_a_server_that_stays_silent_times_out():
    may_end = threading.Event()

    def silent(body, handler):
        may_end.wait(60)

    with SmallServer({"/slow": silent}).running() as server:
        started = time.monotonic()
        with pytest.raises(RolloutError, match=rf"{server.url}: GET /slow: no answer in 0\.2 s"):
            VLLMClient(server.url).get("/slow", timeout=0.2)
        assert time.monotonic() - started < 30
        may_end.set()
        assert server.paths() == ["/slow"]  # what may still be at work is not asked again


def test_a_server_that_trickles_times_out_as_a_whole():
    def trickle(body, handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        try:
            for _ in range(1000):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass  # the client went away, as it should

    with SmallServer({"/slow": trickle}).running() as server:
        started = time.monotonic()
        with pytest.raises(RolloutError, match=r"no answer in 0\.3 s"):
            VLLMClient(server.url).get("/slow", timeout=0.3)
        assert time.monotonic() - started < 30  # of 50 s that all of it would take


def test_a_lost_connection_is_tried_again_where_that_does_no_harm():
    with SmallServer(healthy()).running() as server:
        client = VLLMClient(server.url)
        server.drops = 2
        assert client.post("/pause?mode=wait", {}, is_idempotent=True) == {"message": "done"}
        assert len(server.calls) == 3
        server.drops = 1
        with pytest.raises(RolloutError, match="POST /update_weights: RemoteDisconnected"):
            client.post("/update_weights", {}, is_idempotent=False)
        assert len(server.calls) == 4


def test_it_gives_up_after_a_few_tries():
    with SmallServer(healthy()).running() as server:
        server.drops = 10
        with pytest.raises(RolloutError, match="RemoteDisconnected"):
            VLLMClient(server.url).get("/health")
        assert len(server.calls) == 3


@pytest.mark.parametrize(
    "body", [{"error": {"message": "out of cache"}}, {"error": "out of cache"}, b"out of cache", b'["out of cache"]']
)
def test_the_reason_of_a_failed_call_is_passed_on(body):
    with (
        SmallServer({"/pause": (500, body)}).running() as server,
        pytest.raises(RolloutError, match=r"status 500: .*out of cache"),
    ):
        VLLMClient(server.url).post("/pause", is_idempotent=True)


def test_a_server_that_becomes_healthy_is_waited_for():
    health = iter([(503, b"loading"), (503, b"loading"), (200, b"")])
    with SmallServer({"/health": lambda *_: next(health)}).running() as server:
        VLLMClient(server.url).wait_until_healthy(5)
        assert len(server.calls) == 3


def test_a_server_that_stays_unhealthy_is_not_waited_for_longer_than_said():
    with SmallServer({"/health": (503, b"loading")}).running() as server:
        with pytest.raises(RolloutError, match=r"GET /health: not healthy in 0\.2 s \(it answers 503\)"):
            VLLMClient(server.url).wait_until_healthy(0.2)
        assert len(server.calls) > 1


def test_a_server_that_ended_is_not_waited_for():
    client = VLLMClient(f"http://127.0.0.1:{free_port()}", why_down=lambda: "it has ended: no memory")
    with pytest.raises(RolloutError, match="it has ended: no memory"):
        client.wait_until_healthy(60)
    with pytest.raises(RolloutError, match="POST /pause: it has ended: no memory"):
        client.post("/pause", is_idempotent=True)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost", "ftp://127.0.0.1", "http://"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="write http://HOST:PORT"):
        VLLMClient(url)


def test_no_proxy_is_asked(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with SmallServer(healthy()).running() as server:
        assert VLLMClient(server.url).get("/health") is None


def test_a_key_is_sent_along(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    with SmallServer(
        {"/v1/models": lambda _, handler: (200, {"key": handler.headers["Authorization"]})}
    ).running() as server:
        assert VLLMClient(server.url).get("/v1/models") == {"key": "Bearer sesame"}
