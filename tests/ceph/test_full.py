"""A full cluster, on which writes wait for room: jobs fail with that reason, and leave nothing once there is room."""

import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest
import trio

from lvp_target_rbd import RbdCloneTarget, names
from lvp_target_rbd.lease import leased
from provisioner.contracts import Duration
from provisioner.contracts.errors import NoSpaceError
from provisioner.contracts.testing import a_provenance, a_request
from provisioner.contracts.testing.target_suite import DIGEST, fill
from provisioner.contracts.types import MIB, StageRequest
from tests.ceph.host import Place
from tests.ceph.test_outages import SOON

BASE = StageRequest("raw", 8 * MIB, a_provenance("job-base", DIGEST))


@pytest.fixture
def place(ceph, tmp_path):
    return Place(ceph, tmp_path / "place")


async def test_full_before_job(place, ceph):
    """Nothing is created, at any step of a job that notices it first. What exists can be read."""
    target = place.target(make=RbdCloneTarget, op_timeout=Duration(3600))
    async with target.stage_base(BASE) as staged:
        fill(staged.device, b"image")
        await staged.commit(DIGEST)
    base = await target.base(DIGEST, "raw")
    before = place.objects()
    with ceph.full():
        with trio.fail_after(4 * SOON):
            with pytest.raises(NoSpaceError, match="full"):
                await target.placement(a_request("web01", 8 * MIB))
            target._why_no_room = lambda *_: None  # the space that is reported lags behind
            for staging in (
                target.stage(a_request("web01", 8 * MIB), verified=True),
                target.stage_clone(base, a_request("web01", 8 * MIB)),
                leased(target._client, target._settings, names.lease_name("web01")),
            ):
                with pytest.raises(NoSpaceError, match="is full"):
                    async with staging:
                        raise AssertionError("a full cluster must not create anything")
        assert await target.base(DIGEST, "raw") == base
    assert place.objects() == before
    async with target.stage_clone(base, a_request("web01", 8 * MIB)) as staged:
        await staged.commit(DIGEST)
    assert place.read("web01", 5) == b"image"


# Writes to a file until that fails.
_WRITER = """
import sys
with open(sys.argv[1], "r+b", buffering=0) as file:
    while True:
        file.seek(0)
        for _ in range(16):
            file.write(bytes(2**20))
            print(flush=True)
"""


@contextmanager
def writing(path):
    """Write to a device until it fails, in a process, as qemu-img does."""
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline()
        yield writer


def until_end(writer, how, scope):
    """Wait for the writer in a thread, which a cancel does not end, as for a converter; return what it printed."""
    if how == "cancelled":
        trio.from_thread.run_sync(scope.cancel)
    return writer.communicate()[1]


@pytest.mark.parametrize("how", ["stopped", "cancelled"])
async def test_full_in_copy(place, ceph, how):
    """The writes wait; the job is stopped when the pool reports that it is full, or when it is cancelled."""
    interval = Duration(1 if how == "stopped" else 3600)
    target = place.target(op_timeout=Duration(3600), watch_interval=interval)
    reasons = []
    with ExitStack() as full:
        try:
            with trio.CancelScope() as scope:
                async with target.stage(a_request("web01", 64 * MIB), verified=True) as staged:
                    with writing(staged.device.path) as writer:
                        full.enter_context(ceph.full())
                        began = time.monotonic()
                        words = await trio.to_thread.run_sync(until_end, writer, how, scope)
                    raise OSError(words.decode())
        except NoSpaceError as error:
            reasons.append(error.message)
        except OSError:  # of the writer, whose export was ended
            pass
        assert time.monotonic() - began < 4 * SOON
        assert place.objects() == set()
        assert await target.find("web01") is None
    assert reasons == ([] if how == "cancelled" else [f"stopped before the pool ran full: pool {place.spec} is full"])
    async with target.stage(a_request("web01", 8 * MIB), verified=True) as staged:
        fill(staged.device, b"again")
        await staged.commit(DIGEST)
