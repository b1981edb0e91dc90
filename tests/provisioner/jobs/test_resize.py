"""Growing volumes on request: reservations, guards, cancels."""

import pytest
import structlog.testing
import trio

from provisioner.contracts import GIB, VolumeUser
from provisioner.contracts.errors import ConflictError, NotFoundError, ResizeError, VolumeInUseError
from provisioner.jobs import Status
from tests.cancellation.harness import IMAGE, SPEC, Harness


async def grow(harness, size=2 * GIB, *, online=False, target="main"):
    return await harness.supervisor.resize_volume(target, "web01", size, online=online)


async def test_resize_reserves_the_name(folder):
    """Neither a job nor a removal nor another resize may begin meanwhile, and the reverse."""
    harness = Harness(folder)
    async with harness.running():
        assert (await harness.run()).status is Status.COMPLETED
        harness.target.steps.hang_at = "resize"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grow, harness)
            await harness.target.steps.reached.wait()
            for other in (
                harness.submit,
                lambda: harness.supervisor.remove_volume("main", "web01"),
                lambda: grow(harness),
            ):
                with pytest.raises(ConflictError, match="web01 is being resized"):
                    await other()
            nursery.cancel_scope.cancel()
        harness.target.steps.hang_at = None
        assert harness.volume() == IMAGE
        harness.converter.steps.hang_at = "flush"
        job_id = await harness.submit()
        await harness.converter.steps.reached.wait()
        with pytest.raises(ConflictError, match=job_id):
            await grow(harness)


async def test_resize_asks_guards(folder):
    """Not if the volume has the size already, nor if the request permits that it is in use."""
    harness = Harness(folder)
    async with harness.running():
        made = (await harness.run()).volume
        harness.guard.who_uses["web01"] = [VolumeUser("domain", "db1")]
        with pytest.raises(VolumeInUseError, match="domain db1"):
            await grow(harness)
        assert await grow(harness, made.size_bytes) == (await harness.target.find("web01"), False)
        volume, grown = await grow(harness, online=True)
        assert (volume.size_bytes, grown) == (2 * GIB, True)


async def test_resize_log_line(folder):
    harness = Harness(folder)
    async with harness.running():
        await harness.run()
        with structlog.testing.capture_logs() as lines:
            await grow(harness)
            await grow(harness)
    (line,) = [line for line in lines if line["event"] == "volume resized"]
    assert (line["volume"], line["size"], line["old_size"]) == ("web01", 2 * GIB, SPEC.size_bytes)


async def test_resize_refusals(folder):
    harness = Harness(folder)
    async with harness.running():
        for target in ("main", "nowhere"):
            with pytest.raises(NotFoundError):
                await grow(harness, target=target)
        await harness.run()
        with pytest.raises(ResizeError, match="never shrunk"):
            await grow(harness, 1)
