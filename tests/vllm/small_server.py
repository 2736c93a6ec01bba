"""An HTTP server that answers as a test says, with the paths of a vLLM server."""

import json
import threading
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tuneline.rollout.vllm_wire import DESCRIBE, GENERATE, ServerFacts

FACTS = ServerFacts(
    version="0.32.0",
    model="policy",
    model_type="qwen2",
    vocab_size=97,
    hidden_size=32,
    num_layers=2,
    max_length=128,
    dtype="float32",
    device="cpu",
    logprobs_mode="processed_logprobs",
    max_logprobs=-1,
    backend="tuneline",
    max_lora_rank=8,
    has_weights=True,
)


class SmallServer:
    """Answers by path: a (status, body) pair, or a function of the body that gives one or writes an answer itself.

    Attributes:
        calls: path and body of each call, in order.
        drops: how many connections are closed without an answer before the first is answered.
    """

    def __init__(self, answers):
        self.answers = answers
        self.calls = []
        self.drops = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = json.loads(content) if content else None
                outer.calls.append((self.path, body))
                if outer.drops:
                    outer.drops -= 1
                    self.close_connection = True
                    return
                answer = outer.answers.get(self.path, (404, {"detail": "Not Found"}))
                if callable(answer):
                    answer = answer(body, self)
                if answer is not None:
                    self.reply(*answer)

            do_POST = do_GET

            def reply(self, status, body):
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def paths(self):
        return [path for path, _ in self.calls]


def echo(body, _):
    """Completions that name their seed and prompt."""
    drawn = [
        [
            {
                "ids": [seed % 97, request["prompt_ids"][0]],
                "logprobs": [-0.5, -1.0],
                "is_finished": True,
                "support": None,
            }
            for seed in request["seeds"]
        ]
        for request in body["requests"]
    ]
    return 200, {"completions": drawn}


def healthy(**answers):
    """The answers of a server that does all it is asked."""
    done = (200, {"message": "done"})
    return {
        "/health": (200, b""),
        DESCRIBE: (200, asdict(FACTS)),
        GENERATE: echo,
        "/init_weight_transfer_engine": done,
        "/pause?mode=wait": done,
        "/start_weight_update": done,
        "/update_weights": done,
        "/finish_weight_update": done,
        "/v1/load_lora_adapter": (200, b"Success"),
        "/reset_prefix_cache": (200, {"success": True}),
        "/resume": done,
        **answers,
    }
