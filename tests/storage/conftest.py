"""Checkouts with results and remotes: those of tests/lineage."""

from tests.lineage.conftest import prefect_home, template, traced, traced_template

__all__ = ["prefect_home", "template", "traced", "traced_template"]
