"""Pairs for tests, and a server process that may be killed."""

import http.client
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tuneline.collection.pairs import Candidate, Pair, make_pairs, write_pairs

ROOT = Path(__file__).parents[2]
HOSTILE = "</div><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">‮&amp;\x00"


def some_pairs(number: int = 6, **options) -> list[Pair]:
    rows = [{"prompt": f"What is {n} + 1?", "solution": str(n + 1)} for n in range(number)]
    groups = [[Candidate(f"It is {n + 1}."), Candidate(f"It is {n}.")] for n in range(number)]
    return make_pairs(rows, groups, policy="0" * 32, **options)[0]


@dataclass
class Server:
    """A labelling server as a process of its own."""

    process: subprocess.Popen
    address: str

    @property
    def port(self) -> int:
        return int(urlsplit(self.address).port)

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.address).query)["token"][0]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def ask(self, method: str, path: str, body=None, *, cookie: bool = True, **headers: str):
        """Status, headers and body, decoded where it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Cookie": f"tuneline_label_{self.port}={self.token}"} if cookie else {}
        if method == "POST":
            given |= {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, sent, {name: value for name, value in given.items() if value})
        response = connection.getresponse()
        text = response.read().decode()
        is_json = response.getheader("Content-Type", "").startswith("application/json")
        connection.close()
        return response.status, response.headers, json.loads(text) if is_json else text

    def label(self, pair: str, choice: str = "left", annotator: str = "anna", client: str = "client-0001", **more):
        sent = {"pair": pair, "choice": choice, "annotator": annotator, "client": client, "seconds": 1.5}
        status, _, answer = self.ask("POST", "/api/labels", {**sent, **more})
        assert status == 200, answer
        return answer["outcome"]

    def pairs(self, annotator: str = "anna", limit: int = 20) -> list[dict]:
        status, _, answer = self.ask("GET", f"/api/pairs?annotator={annotator}&limit={limit}")
        assert status == 200, answer
        return answer["pairs"]


def start_server(folder: Path, pairs: list[Pair], *, port: int = 0, shared: float = 1.0) -> Server:
    """Serve `folder`/labels.db with these pairs."""
    write_pairs(folder / "pairs.jsonl", pairs)
    code = (
        "import sys; from tests.collection.pairs import serve; serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(port), str(shared)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Server(process, process.stdout.readline().strip())


def serve(folder: str, port: int, shared: float) -> None:
    from tuneline.collection.pairs import read_pairs
    from tuneline.collection.store import LabelStore
    from tuneline.collection.web import LabelServer

    store = LabelStore(Path(folder) / "labels.db", shared_share=shared)
    store.add_pairs(read_pairs(Path(folder) / "pairs.jsonl"))
    server = LabelServer(store, port=port, token="a-token-for-this-test-alone")
    print(server.address, flush=True)
    server.serve()
