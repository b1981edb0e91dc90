"""One cluster for the whole run, started when the first test needs it."""

import signal
import tempfile
from pathlib import Path

import pytest

from tests.ceph.cluster import cluster


@pytest.fixture(scope="session")
def ceph():
    """Return the running cluster. Its folder has a short name, for the sockets in it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers end even if the run is ended early
    with cluster(Path(tempfile.mkdtemp(prefix="lvp-ceph-"))) as running:
        yield running


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.ceph)
