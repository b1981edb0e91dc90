"""What a plugin's own tests need: fakes of every other part, and the suites its back ends must pass.

**Suites.** Subclass the suite in a test module, say how to make your back end, and pytest with pytest-trio
(``trio_mode = true``) runs the promises of the interface against it::

    # tests/test_scp.py
    from provisioner.contracts.testing import SourceConformance

    class TestScp(SourceConformance):
        @asynccontextmanager
        async def serve(self, content):
            async with an_ssh_server(content) as port:
                yield ScpSource(ScpSettings(...), context), f"scp://127.0.0.1:{port}/image"

The built-in back ends pass the very same suites. For readable failures, let pytest rewrite their asserts:
``pytest.register_assert_rewrite("provisioner.contracts.testing")`` in ``conftest.py``.

**Fakes.** Each is real enough to run the pipeline on, counts what was done to it, and names in ``STEPS`` every
place where it can wait. ``hang_at="..."`` makes it wait there for ever and set ``steps.reached``; ``fail_at``
makes it raise there. A cancellation test walks over all of them::

    for step in FakeTarget.STEPS:
        target = FakeTarget(folder, hang_at=step)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_the_job, target)
            await target.steps.reached.wait()
            nursery.cancel_scope.cancel()
        assert target.leftovers() == []

This package does not import pytest.
"""

from provisioner.contracts.testing.converter_suite import ConverterConformance
from provisioner.contracts.testing.fake_target import FakeCloneTarget, FakeTarget
from provisioner.contracts.testing.fakes import FakeConverter, FakeGuard, FakeImage, FakeObserver, FakeSource
from provisioner.contracts.testing.source_suite import SourceConformance
from provisioner.contracts.testing.steps import Steps, a_provenance, a_request, raises
from provisioner.contracts.testing.target_suite import BlockTargetConformance
from provisioner.contracts.testing.views import ArrivingView, FileView

__all__ = [
    "ArrivingView",
    "BlockTargetConformance",
    "ConverterConformance",
    "FakeCloneTarget",
    "FakeConverter",
    "FakeGuard",
    "FakeImage",
    "FakeObserver",
    "FakeSource",
    "FakeTarget",
    "FileView",
    "SourceConformance",
    "Steps",
    "a_provenance",
    "a_request",
    "raises",
]
