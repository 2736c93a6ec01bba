"""HTTP calls to a vLLM server. Every one has a time-out, and every failure names the server and the endpoint."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from tuneline.errors import ConfigError, RolloutError
from tuneline.logging import get_logger

logger = get_logger(__name__)

_RETRY_AFTER = (0.5, 1.0, 2.0)  # seconds before each further try of a call that did not get through
_POLL_SECONDS = 0.25


class VLLMClient:
    """One server. It goes through no proxy, follows no redirect, and may be used from several threads.

    Args:
        base_url: such as `http://127.0.0.1:8000`.
        timeout: seconds for a whole call, unless the call says otherwise.
        why_down: asked when a call fails; what is known of a server that has ended, or None.
        option: the setting that the address comes from, for the message where it is none.
    """

    def __init__(
        self,
        base_url: str,
        timeout: float = 600.0,
        why_down: Callable[[], str | None] = lambda: None,
        option: str = "vllm_server_base_url",
    ):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{option}={base_url!r} is no address of a server; write http://HOST:PORT.")
        self.base_url = base_url.rstrip("/")
        self.timeout = timeout
        self._why_down = why_down
        self._headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):  # where vLLM itself looks for it
            self._headers["Authorization"] = f"Bearer {key}"
        self._address = (parts.hostname, parts.port)
        self._prefix = parts.path.rstrip("/")
        self._connect = http.client.HTTPConnection if parts.scheme == "http" else http.client.HTTPSConnection

    def get(self, path: str, *, timeout: float | None = None) -> Any:
        """The body of the answer, read as JSON; None if it is empty."""
        return self._call("GET", path, None, timeout, is_idempotent=True)

    def post(self, path: str, body: Any = None, *, timeout: float | None = None, is_idempotent: bool) -> Any:
        """As `get`. A call that may be made twice is made again where the connection failed."""
        return self._call("POST", path, body, timeout, is_idempotent)

    def wait_until_healthy(self, timeout: float) -> None:
        """Until `/health` answers; RolloutError if it does not in `timeout` seconds, or the server has ended."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                status, _ = self._once("GET", "/health", None, min(5.0, timeout))
                reason = f"it answers {status}"
                if status == 200:
                    return
            except (OSError, http.client.HTTPException) as error:
                reason = _words(error)
            if down := self._why_down():
                raise self._error("GET", "/health", down)
            if time.monotonic() >= deadline:
                raise self._error(
                    "GET",
                    "/health",
                    f"not healthy in {timeout:g} s ({reason}); start it, or raise vllm_server_timeout",
                )
            time.sleep(_POLL_SECONDS)

    def _call(self, method: str, path: str, body: Any, timeout: float | None, is_idempotent: bool) -> Any:
        timeout = timeout or self.timeout
        content = None if body is None else json.dumps(body).encode()
        pauses = iter(_RETRY_AFTER if is_idempotent else ())
        while True:
            try:
                status, answer = self._once(method, path, content, timeout)
                break
            except TimeoutError as error:
                raise self._error(method, path, self._why_down() or f"no answer in {timeout:g} s") from error
            except (OSError, http.client.HTTPException) as error:
                down = self._why_down()
                pause = next(pauses, None)
                if down or pause is None:
                    raise self._error(method, path, down or _words(error)) from error
                logger.warning("vLLM server %s: %s %s: %s; trying again", self.base_url, method, path, _words(error))
                time.sleep(pause)
        if status != 200:
            raise self._error(method, path, f"status {status}: {_message(answer)}")
        try:
            return json.loads(answer) if answer.strip() else None
        except ValueError:
            return answer.decode(errors="replace")

    def _once(self, method: str, path: str, content: bytes | None, timeout: float) -> tuple[int, bytes]:
        deadline = time.monotonic() + timeout
        connection = self._connect(*self._address, timeout=min(timeout, 30.0))
        try:
            connection.connect()
            connection.sock.settimeout(timeout)
            connection.request(method, self._prefix + path, content, self._headers)
            response = connection.getresponse()
            parts = []
            while part := response.read1(2**20):  # a time-out for the whole, not for each part
                parts.append(part)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if connection.sock is not None:  # closed once all is read
                    connection.sock.settimeout(left)
            return response.status, b"".join(parts)
        finally:
            connection.close()

    def _error(self, method: str, path: str, reason: str) -> RolloutError:
        return RolloutError(f"vLLM server {self.base_url}: {method} {path}: {reason}")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _message(answer: bytes) -> str:
    """The reason in the body of a failed call, at most 1,000 characters."""
    text = answer.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        pass
    return text.strip()[:1000]
