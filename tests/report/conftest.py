"""Checkouts whose stages are toys, for what a whole run leaves."""

from tests.flows.conftest import checkout as toy_checkout
from tests.flows.conftest import prefect_home as prefect_home
from tests.flows.conftest import template as template
from tests.stages.conftest import checkout_after_prepare as checkout_after_prepare

__all__ = ["checkout_after_prepare", "prefect_home", "template", "toy_checkout"]
