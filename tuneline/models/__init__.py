"""Models: how they are loaded, and which layout they read."""

from tuneline.models.layouts import prepare_for_trees
from tuneline.models.loading import resolve_model

__all__ = ["prepare_for_trees", "resolve_model"]
