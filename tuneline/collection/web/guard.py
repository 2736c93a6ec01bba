"""Who may talk to the server: a browser on this machine that was given the token, on pages that the server sent.

Another page that is open in the same browser can send requests to loopback too. It is kept out by the cookie (SameSite,
unreadable to scripts), by the `Origin` of what changes anything, and by the `Host`, which a name that was bent to
127.0.0.1 (DNS rebinding) does not have.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

HEADERS = {
    # Everything comes from the server itself, and nothing that a completion holds can become code.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


Header = Callable[[str], str | None]
"""The value of a request's header by its name, in whatever case."""


class Guard:
    """What is asked of every request.

    Args:
        port: that the server listens on.
        token: at least 16 characters that nobody guesses.
    """

    def __init__(self, port: int, token: str):
        self.port, self.token = port, token
        self.cookie = f"tuneline_label_{port}"  # cookies do not tell ports apart

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(f"{name}:{self.port}" for name in ("127.0.0.1", "localhost"))

    def knows(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())

    def refusal(self, header: Header, *, changes: bool) -> str | None:
        """Why a request is refused; None for one that may go on. The token is not looked at.

        Args:
            changes: whether it changes anything.
        """
        host = (header("Host") or "").lower()
        if host not in self.hosts:
            return "this server answers under 127.0.0.1 and localhost only"
        origin = header("Origin")
        if origin is not None and origin.lower() not in [f"http://{name}" for name in self.hosts]:
            return "the request comes from another page"
        if not changes:
            return None
        if origin is None or origin.lower() != f"http://{host}":
            return "what changes labels has to come from the page itself"
        if (header("Sec-Fetch-Site") or "same-origin") != "same-origin":
            return "the request comes from another site"
        if (header("Content-Type") or "").partition(";")[0].strip().lower() != "application/json":
            return "labels are sent as application/json"
        return None

    def has_cookie(self, header: Header) -> bool:
        try:
            cookies = SimpleCookie(header("Cookie") or "")
        except CookieError:
            return False
        found = cookies.get(self.cookie)
        return found is not None and self.knows(found.value)

    @property
    def set_cookie(self) -> str:
        return f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000"
