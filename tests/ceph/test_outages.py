# ruff: noqa: SIM117, PT012, ASYNC240 - one context per line of the story; the error is the whole block's
"""A cluster that hangs, is full, or refuses the key: one job fails with a clear error, and leaves nothing for long."""

import time
from pathlib import Path

import pytest
import trio

from provisioner.contracts import Duration, SecretRef
from provisioner.contracts.errors import NoSpaceError, ProvisionerError, TargetUnavailableError
from provisioner.contracts.testing import a_request
from provisioner.contracts.testing.target_suite import DIGEST, fill
from provisioner.contracts.types import MIB
from tests.ceph.host import Place

# Seconds; a cancel takes 2 s at most, the rest is for a busy machine.
SOON = 20


@pytest.fixture
def place(ceph, tmp_path):
    return Place(ceph, tmp_path / "place")


def short(place, **more):
    return place.target(op_timeout=Duration(3), **more)


async def write(path, size, started):
    """Write to a device in a thread, as a converter does: it cannot be cancelled there."""

    def fill_up():
        with Path(path).open("r+b", buffering=0) as file:
            for _ in range(size // MIB):
                file.write(b"\xa5" * MIB)
                trio.from_thread.run_sync(started.set)

    await trio.to_thread.run_sync(fill_up)


async def test_stopped_osd_fails_calls_in_time(place, ceph):
    target = short(place)
    with ceph.stopped("osd.0"):
        began = time.monotonic()
        with pytest.raises(TargetUnavailableError, match=r"did not answer within 3s|was killed"):
            await target.find("web01")
        with pytest.raises(TargetUnavailableError):
            await target.check()
        assert time.monotonic() - began < 2 * SOON
    assert await target.find("web01") is None


async def test_cancel_while_osd_is_stopped(place, ceph):
    """The thread that writes is freed, because its export is ended."""
    target, started = short(place), trio.Event()
    with trio.CancelScope() as scope:
        try:
            async with target.stage(a_request("web01", 64 * MIB), verified=True) as staged:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write, staged.device.path, 64 * MIB, started)
                    await started.wait()
                    frozen = ceph.stopped("osd.0")
                    frozen.__enter__()
                    began = time.monotonic()
                    scope.cancel()
        except ProvisionerError as error:
            rolled_back = error
        finally:
            taken = time.monotonic() - began
            frozen.__exit__(None, None, None)
    assert "could not clean up" in str(rolled_back)
    assert taken < 3 * SOON
    await target.recover(frozenset())
    assert place.objects() == set()
    assert list(await target.recover(frozenset())) == []


async def test_unreachable_monitor(place, tmp_path):
    conf = tmp_path / "ceph.conf"
    conf.write_text("[global]\nfsid = 00000000-0000-0000-0000-000000000000\nmon host = [v2:127.0.0.1:1]\n")
    target = short(place, conf=str(conf))
    began = time.monotonic()
    with pytest.raises(TargetUnavailableError, match="did not answer within 3s"):
        await target.find("web01")
    assert time.monotonic() - began < SOON


async def test_wrong_key(place, ceph, tmp_path):
    keyring, damaged = tmp_path / "keyring", tmp_path / "damaged"
    other = ceph.ceph("auth", "get-key", "client.admin").strip()
    keyring.write_text(f"[client.{place.user}]\nkey = {other}\n")
    damaged.write_text(f"[client.{place.user}]\nkey = no key\n")
    for wrong in (keyring, damaged, tmp_path / "missing"):
        target = short(place, keyring=SecretRef(f"file:{wrong}"))
        with pytest.raises(TargetUnavailableError, match=f"refuses client.{place.user}"):
            await target.find("web01")


async def test_key_of_another_namespace(place, ceph):
    target = short(place, namespace=ceph.make_namespace())
    with pytest.raises(TargetUnavailableError, match="check its key and its capabilities"):
        async with target.stage(a_request("web01", 8 * MIB), verified=True):
            raise AssertionError("a key without capabilities must not create an image")


async def test_doctor_says_what_is_missing(place, tmp_path):
    assert [finding for finding in await place.target(python="/usr/bin/python3").diagnose() if not finding.ok] == []
    wrong = {
        "pool": "nowhere",
        "python": "/bin/false",
        "qemu_storage_daemon": "/bin/true",
        "conf": str(tmp_path / "no"),
    }
    for key, value in wrong.items():
        findings = await short(place, **{key: value}).diagnose()
        assert [finding for finding in findings if finding.ok is False], key
        assert all(finding.fix for finding in findings if finding.ok is False), key


async def test_quota(ceph, tmp_path):
    """The quota counts as the pool's size; a job that would exceed it is stopped, or refused in advance."""
    ceph.make_pool("small")
    ceph.ceph("osd", "pool", "set-quota", "small", "max_bytes", str(64 * MIB))
    place = Place(ceph, tmp_path / "place", "small")
    target = short(place, watch_interval=Duration(1))
    ceph.wait_for(lambda: ceph.json("df", "detail")["pools"][-1]["stats"].get("quota_bytes"))
    assert (await target.capacity()).total_bytes == 64 * MIB
    with pytest.raises(NoSpaceError, match="larger than pool small"):
        await target.placement(a_request("web01", 65 * MIB))
    with pytest.raises(NoSpaceError, match="full"):
        async with target.stage(a_request("web01", 64 * MIB), verified=True) as staged:
            for _ in range(SOON):
                await write(staged.device.path, 64 * MIB, trio.Event())
                await trio.sleep(1)
    ceph.ceph("osd", "pool", "set-quota", "small", "max_bytes", "0")
    ceph.wait_for(lambda: "full" not in ceph.ceph("osd", "pool", "ls", "detail").partition("small")[2].splitlines()[0])
    await target.recover(frozenset())
    assert place.objects() == set()
    async with target.stage(a_request("web01", 8 * MIB), verified=True) as staged:
        fill(staged.device, b"again")
        await staged.commit(DIGEST)


async def test_export_that_dies(place):
    """Its mount is stale, its watch stays for a while, and the commit is refused."""
    target = place.target()
    with pytest.raises(ProvisionerError, match="ended too early"):
        async with target.stage(a_request("web01", 8 * MIB), verified=True) as staged:
            staged._export._child.kill()
            await staged.commit(DIGEST)
    assert list(await target.recover(frozenset())) == []
    assert place.objects() == set()
    assert "web01" not in Path("/proc/self/mountinfo").read_text()
    assert not list((place.folder / "state" / "rbd" / "ceph").iterdir())
