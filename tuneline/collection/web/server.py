"""The server of the labelling page: `http.server` of Python, a thread a connection, no framework to keep up with.

- `GET /?token=TOKEN` sets the cookie and goes on to `GET /`, the page; `/page.js` and `/page.css` are its parts
- `GET /api/pairs?annotator=NAME&limit=N`: `{"pairs": [...], "progress": {...}}`, what NAME is shown next
- `GET /api/summary`: progress of all, and how far annotators agree
- `POST /api/labels` with `{annotator, pair, choice, client, seconds}`, where choice is left, right, tie or skip
- `POST /api/undo` with `{annotator, pair, client}`; without the last two the newest label is taken back

The last two answer once the label is on the disk, and may be sent twice. What is on the left is decided here, by pair
and annotator, and written down with the label; the page knows neither `a` and `b` nor the policy.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tuneline.collection.agreement import agreement
from tuneline.collection.pairs import Pair
from tuneline.collection.store import PERSON, LabelStore
from tuneline.collection.web.guard import HEADERS, Guard
from tuneline.errors import DataError, TunelineError
from tuneline.logging import get_logger

logger = get_logger(__name__)

LOOPBACK = "127.0.0.1"
_PARTS = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}
_ANNOTATOR = re.compile(r"[^\W_][\w .@'-]{0,39}")
_CLIENT = re.compile(r"[\w-]{8,64}")
_MOST_BYTES = 16_384
_MOST_PAIRS = 20


class LabelServer:
    """Serves the page for one store until it is closed.

    Args:
        port: 0 takes a free one.
        token: None makes one; given again after a restart, browsers that are open go on.

    Raises:
        TunelineError: the port is taken.
    """

    def __init__(self, store: LabelStore, *, port: int = 0, token: str | None = None):
        self.store = store
        try:
            self._http = _Http((LOOPBACK, port), _Handler)
        except OSError as error:
            raise TunelineError(f"port {port} cannot be listened on ({error.strerror}); give another --port.") from None
        self.port = int(self._http.server_address[1])
        self._http.store = store
        self._http.guard = Guard(self.port, token or secrets.token_urlsafe(24))

    @property
    def token(self) -> str:
        return self._http.guard.token

    @property
    def address(self) -> str:
        """What to open in a browser; whoever knows it can label."""
        return f"http://{LOOPBACK}:{self.port}/?token={self.token}"

    def serve(self) -> None:
        """Answer until `close` is called from another thread, or a signal raises here."""
        self._http.serve_forever(poll_interval=0.2)

    def start(self) -> None:
        """Answer from a thread of its own."""
        threading.Thread(target=self.serve, name="labels", daemon=True).start()

    def close(self) -> None:
        """To be called once `serve` runs, from another thread, or after it has ended."""
        self._http.shutdown()
        self._http.server_close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    store: LabelStore
    guard: Guard

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of a request is no news; all else is logged where it happens."""
        logger.debug("a connection broke off", exc_info=True)


class _Refused(Exception):
    """A request that is answered with an error, and its status."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tuneline", ""
    timeout = 60  # seconds that a connection may stay silent

    def do_GET(self) -> None:
        self._answer(changes=False)

    def do_POST(self) -> None:
        self._answer(changes=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address of the first request holds the token."""

    def _answer(self, *, changes: bool) -> None:
        try:
            refusal = self.server.guard.refusal(self.headers.get, changes=changes)
            if refusal is not None:
                raise _Refused(HTTPStatus.FORBIDDEN, refusal)
            self._post() if changes else self._get()
        except _Refused as refused:
            self.close_connection = True  # a body that was not read would be taken for the next request
            self._send_json({"error": str(refused)}, refused.status)
        except DataError as error:
            self._send_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:
            logger.exception("the labelling server failed on %s", urlsplit(self.path).path)
            self.close_connection = True
            self._send_json({"error": "the server failed; its log says why"}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _get(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        if address.path == "/" and "token" in query and self.server.guard.knows(query["token"]):
            # The token leaves the address, and so the history and what others see of the screen.
            self._send(b"", "text/plain", HTTPStatus.SEE_OTHER, {"Location": "/", **self._cookie()})
            return
        self._check_token()
        if address.path in _PARTS:
            name, kind = _PARTS[address.path]
            self._send(files("tuneline.collection.web").joinpath(name).read_bytes(), f"{kind}; charset=utf-8")
        elif address.path == "/api/pairs":
            annotator, limit = _annotator(query.get("annotator")), query.get("limit", "1")
            if not limit.isdecimal() or not 1 <= int(limit) <= _MOST_PAIRS:
                raise _Refused(HTTPStatus.BAD_REQUEST, f"limit is a number from 1 to {_MOST_PAIRS}")
            shown = [self._shown(pair, annotator) for pair in self.server.store.pairs_for(annotator, int(limit))]
            self._send_json({"pairs": shown, "progress": self._progress(annotator)})
        elif address.path == "/api/summary":
            self._send_json(summary(self.server.store))
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self) -> None:
        self._check_token()
        path, sent = urlsplit(self.path).path, self._body()
        annotator = _annotator(sent.get("annotator"))
        store = self.server.store
        match path:
            case "/api/labels":
                pair, client = _text(sent, "pair"), _client(sent)
                left = store.left_side(pair, annotator)
                sides = {"left": left, "right": "b" if left == "a" else "a", "tie": "tie", "skip": "skip"}
                choice = sides.get(_text(sent, "choice"))
                if choice is None:
                    raise _Refused(HTTPStatus.BAD_REQUEST, "choice is left, right, tie or skip")
                outcome = store.add_label(
                    pair,
                    annotator,
                    choice,
                    how=PERSON,
                    client=client,
                    shown_left=left,
                    seconds=_seconds(sent.get("seconds")),
                )
                self._send_json({"outcome": outcome, "progress": self._progress(annotator)})
            case "/api/undo":
                if "pair" in sent:
                    pair, client = _text(sent, "pair"), _client(sent)
                else:
                    last = store.last_label(annotator)
                    if last is None:
                        self._send_json({"pair": None, "progress": self._progress(annotator)})
                        return
                    pair, client = last
                store.take_back(pair, annotator, client)
                found = store.pair(pair)
                shown = None if found is None else self._shown(found, annotator)
                self._send_json({"pair": shown, "progress": self._progress(annotator)})
            case _:
                raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _shown(self, pair: Pair, annotator: str) -> dict[str, Any]:
        """What the page is told of a pair: nothing that tells the sides apart."""
        texts = (pair.a, pair.b) if self.server.store.left_side(pair.id, annotator) == "a" else (pair.b, pair.a)
        return {"pair": pair.id, "prompt": _turns(pair.prompt), "left": texts[0], "right": texts[1]}

    def _progress(self, annotator: str) -> dict[str, int]:
        progress = self.server.store.progress()
        mine = progress.by_annotator.get(annotator, 0)
        left = self.server.store.num_left(annotator)
        return {"mine": mine, "left": left, "pairs": progress.pairs, "answered": progress.answered}

    def _check_token(self) -> None:
        if not self.server.guard.has_cookie(self.headers.get):
            reason = "open the address that the server printed, with its token"
            raise _Refused(HTTPStatus.UNAUTHORIZED, reason)

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length") or ""
        if not length.isdecimal() or int(length) > _MOST_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a label has at most {_MOST_BYTES} bytes")
        try:
            sent = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            sent = None
        if not isinstance(sent, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "what was sent is no JSON object")
        return sent

    def _cookie(self) -> dict[str, str]:
        return {"Set-Cookie": self.server.guard.set_cookie}

    def _send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(
        self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, more: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def summary(store: LabelStore) -> dict[str, Any]:
    """Progress and agreement of a store, as JSON holds them."""
    progress, agreed = store.progress(), agreement(store.labels())
    return {
        "pairs": progress.pairs,
        "answered": progress.answered,
        "decided": progress.decided,
        "annotators": progress.by_annotator,
        "agreement": {
            "pairs": agreed.num_pairs,
            "annotators": agreed.num_annotators,
            "raw": agreed.raw,
            "alpha": agreed.alpha,
            "kappa": [{"annotators": list(two), "kappa": value} for two, value in agreed.kappa.items()],
            "left_share": agreed.left_share,
        },
    }


def _turns(prompt: Any) -> list[dict[str, str]]:
    """A prompt as the page shows it: who says what."""
    if isinstance(prompt, str):
        return [{"role": "", "content": prompt}]
    return [{"role": str(turn.get("role", "")), "content": _content(turn.get("content"))} for turn in prompt]


def _content(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _annotator(name: Any) -> str:
    if not isinstance(name, str) or not _ANNOTATOR.fullmatch(name):
        raise _Refused(HTTPStatus.BAD_REQUEST, "annotator is a name: 1 to 40 letters, digits, spaces, or any of _.@'-")
    return name


def _client(sent: dict[str, Any]) -> str:
    client = _text(sent, "client")
    if not _CLIENT.fullmatch(client):
        raise _Refused(HTTPStatus.BAD_REQUEST, "client is 8 to 64 letters, digits, _ or -")
    return client


def _text(sent: dict[str, Any], name: str) -> str:
    value = sent.get(name)
    if not isinstance(value, str):
        raise _Refused(HTTPStatus.BAD_REQUEST, f"{name} is missing")
    return value


def _seconds(value: Any) -> float | None:
    is_time = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6
    return round(float(value), 1) if is_time else None
