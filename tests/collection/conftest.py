"""A labelling server for a test, as a process of its own."""

import pytest

from tests.collection.pairs import some_pairs, start_server


@pytest.fixture
def serve(tmp_path):
    """Starts servers of labels.db in the test's folder; those that still run end with the test."""
    started = []

    def start(pairs=None, **options):
        started.append(start_server(tmp_path, some_pairs() if pairs is None else pairs, **options))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.kill()
