"""The page on which people label pairs, and the server behind it: Python's own, on loopback alone."""

from tuneline.collection.web.server import LabelServer

__all__ = ["LabelServer"]
