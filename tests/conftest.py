"""What all tests share: readable failures of the conformance suites, and a quick folder."""

import importlib.util
import signal
import tempfile
from pathlib import Path

import pytest

if importlib.util.find_spec("hypothesis"):  # it is not in the guest, whose tests do without
    import hypothesis

    # A busy machine is no failure.
    hypothesis.settings.register_profile("ours", deadline=None, max_examples=50)
    hypothesis.settings.load_profile("ours")
# A shell that starts the tests in its background has them, and all they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
pytest.register_assert_rewrite("provisioner.contracts.testing")


@pytest.fixture
def folder(tmp_path):
    """A folder in memory where the system has that: a job waits for the disk many times."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)
