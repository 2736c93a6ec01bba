"""The page on which people label pairs, and the server behind it: Python's own, on loopback alone."""

from tuneline.collection.web.address import open_server
from tuneline.collection.web.server import LabelServer, summary

__all__ = ["LabelServer", "open_server", "summary"]
