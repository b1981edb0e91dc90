"""Shared by all tests: readable failures of the conformance suites, and a fast folder."""

import importlib.util
import signal
import sys
import tempfile
from pathlib import Path

import pytest

if importlib.util.find_spec("hypothesis"):  # not installed in the guest, whose tests do not use it
    import hypothesis

    # No deadline, because the machine may be busy; the same examples in each run, so that none depends on luck.
    hypothesis.settings.register_profile("ours", deadline=None, max_examples=50, derandomize=True)
    hypothesis.settings.load_profile("ours")
# A shell that runs the tests in the background makes them and their children ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
pytest.register_assert_rewrite("provisioner.contracts.testing")


@pytest.fixture
def folder(tmp_path):
    """Return a folder, in memory if possible, because a job waits for the disk many times."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(call):
    """Add the state of the daemons to the report of a failed test, before they are ended."""
    report = (yield).get_result()
    module = sys.modules.get("tests.end_to_end.daemon")
    if module is None:
        return
    if report.failed and call.when != "teardown":
        report.sections += [("daemon", daemon.state()) for daemon in module.DAEMONS.values()]
    if call.when == "teardown":
        running = {folder: daemon for folder, daemon in module.DAEMONS.items() if daemon.process.poll() is None}
        module.DAEMONS = running
