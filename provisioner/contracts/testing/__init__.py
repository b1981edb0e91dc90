"""Test support for plugins: fakes of the other parts, and the conformance suites that back ends must pass.

**Suites.** Subclass the suite in a test module and implement its factory methods. pytest with pytest-trio
(``trio_mode = true``) then tests the back end against the interface::

    # tests/test_scp.py
    from provisioner.contracts.testing import SourceConformance

    class TestScp(SourceConformance):
        @asynccontextmanager
        async def serve(self, content):
            async with an_ssh_server(content) as port:
                yield ScpSource(ScpSettings(...), context), f"scp://127.0.0.1:{port}/image"

The built-in back ends pass the same suites. For readable failures, enable assertion rewriting in ``conftest.py``:
``pytest.register_assert_rewrite("provisioner.contracts.testing")``.

**Fakes.** Each fake works well enough to run the pipeline, records how it is used, and lists every step at which it may
wait in ``STEPS``. ``hang_at="..."`` makes it hang at that step and set ``steps.reached``; ``fail_at`` makes it raise
there. A cancellation test iterates over all steps::

    for step in FakeTarget.STEPS:
        target = FakeTarget(folder, hang_at=step)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_the_job, target)
            await target.steps.reached.wait()
            nursery.cancel_scope.cancel()
        assert target.leftovers() == []

This package does not import pytest.
"""

from provisioner.contracts.testing.clone_suite import CloneTargetConformance
from provisioner.contracts.testing.converter_suite import ConverterConformance
from provisioner.contracts.testing.fake_clones import FakeCloneTarget
from provisioner.contracts.testing.fake_keeping import FakeKeepingTarget
from provisioner.contracts.testing.fake_target import FakeTarget
from provisioner.contracts.testing.fakes import FakeConverter, FakeGuard, FakeImage, FakeObserver, FakeSource
from provisioner.contracts.testing.image_views import ArrivingView, FileView
from provisioner.contracts.testing.keeping_suite import KeepingTargetConformance
from provisioner.contracts.testing.source_suite import SourceConformance
from provisioner.contracts.testing.steps import Steps, a_provenance, a_request, raises
from provisioner.contracts.testing.target_suite import BlockTargetConformance
from provisioner.contracts.testing.volume_access import VolumeAccess

__all__ = [
    "ArrivingView",
    "BlockTargetConformance",
    "CloneTargetConformance",
    "ConverterConformance",
    "FakeCloneTarget",
    "FakeConverter",
    "FakeGuard",
    "FakeImage",
    "FakeKeepingTarget",
    "FakeObserver",
    "FakeSource",
    "FakeTarget",
    "FileView",
    "KeepingTargetConformance",
    "SourceConformance",
    "Steps",
    "VolumeAccess",
    "a_provenance",
    "a_request",
    "raises",
]
