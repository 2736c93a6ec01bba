"""A killed run cannot tell Prefect that it has ended; the next run in the same checkout does that for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from prefect import get_client
from prefect.states import Crashed

from tuneline.logging import get_logger

logger = get_logger(__name__)


@contextmanager
def noted(root: Path, flow_run: str) -> Iterator[None]:
    """Within it .work/flow_run names the run. One named there before is dead: a checkout has one run at a time."""
    path = root / ".work" / "flow_run"
    if path.is_file() and path.read_text() != flow_run:
        _close(path.read_text())
    path.write_text(flow_run)
    try:
        yield
    finally:
        if path.is_file() and path.read_text() == flow_run:
            path.unlink()


def _close(flow_run: str) -> None:
    state = Crashed(message="The process of this run was killed.")
    try:
        with get_client(sync_client=True) as client:
            found = client.read_flow_run(UUID(flow_run))
            if found.state is None or not found.state.is_final():
                client.set_flow_run_state(found.id, state, force=True)
    except Exception as error:  # it was another server's, or has been deleted
        logger.info("the killed run %s stays as it is in Prefect: %s", flow_run, error)
