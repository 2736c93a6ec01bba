"""The toy line of tests/flows, for sweeps."""

from tests.flows.conftest import checkout, prefect_home, template

__all__ = ["checkout", "prefect_home", "template"]
