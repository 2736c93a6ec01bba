"""Servers for programs, shared by the tests of a session."""

import textwrap
from dataclasses import replace

import pytest

from tests.rewards.programs import LIMITS, SQUARE_TESTS
from tuneline.rewards.sandbox.pool import Job, Sandboxes


@pytest.fixture(scope="session")
def sandboxes():
    servers = Sandboxes(LIMITS, num_workers=2)
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def hurried_sandboxes():
    """For programs that are to run out of time."""
    servers = Sandboxes(replace(LIMITS, wall_time=0.7), num_workers=1)
    yield servers
    servers.close()


@pytest.fixture
def verdict(sandboxes):
    """The verdict on one program."""

    def check(program, tests=SQUARE_TESTS, entry_point="square", context="", servers=sandboxes):
        return servers.check([Job(textwrap.dedent(program), textwrap.dedent(tests), entry_point, context)])[0]

    return check
