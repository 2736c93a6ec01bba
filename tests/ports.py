"""Ports for servers of tests."""

import random
import socket

_ANY = random.SystemRandom()  # tests run in several processes at once


def free_port() -> int:
    """A port on loopback that nobody listens on, of those that no system gives to a connection by itself."""
    while True:
        port = _ANY.randrange(10_000, 32_768)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:  # taken
                continue
        return port
