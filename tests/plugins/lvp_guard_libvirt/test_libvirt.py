"""The guard and the observer against a real libvirtd with running guests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from lvp_guard_libvirt import GuardSettings, LibvirtGuard, PoolRefresher, PoolSettings
from provisioner.contracts import BackEndContext, JobEvent, Volume, VolumeUser
from provisioner.contracts.errors import TargetUnavailableError

pytestmark = pytest.mark.slow  # a daemon and guests
CONTEXT = BackEndContext("libvirt", Path("/nonexistent"))


def guard(libvirt, **settings):
    return LibvirtGuard(GuardSettings(uri=libvirt.uri, **settings), CONTEXT)


def volume(path):
    return Volume("web-01", "files", str(path), 1024 * 1024)


async def test_users_running_domains_only(libvirt, image):
    libvirt.define("guest of web-01", f"<source file='{image}'/>")
    assert await guard(libvirt).users(volume(image)) == []
    libvirt.virsh("start", "guest of web-01")
    assert await guard(libvirt).users(volume(image)) == [VolumeUser("domain", "guest of web-01")]
    assert await guard(libvirt).users(volume(image.with_name("other.raw"))) == []
    libvirt.virsh("suspend", "guest of web-01")
    assert await guard(libvirt).users(volume(image)) == [VolumeUser("domain", "guest of web-01")]
    libvirt.virsh("destroy", "guest of web-01")
    assert await guard(libvirt).users(volume(image)) == []


async def test_users_with_defined_domains(libvirt, image):
    libvirt.define("shut-off", f"<source file='{image}'/>")
    assert await guard(libvirt, defined=True).users(volume(image)) == [VolumeUser("domain", "shut-off")]


async def test_users_more_domains_than_a_batch(libvirt, image, monkeypatch):
    monkeypatch.setattr("lvp_guard_libvirt.guard._BATCH", 2)
    for number in range(5):
        libvirt.define(f"guest-{number}", f"<source file='{image if number in {0, 4} else '/nonexistent'}'/>")
    users = await guard(libvirt, defined=True).users(volume(image))
    assert sorted(user.name for user in users) == ["guest-0", "guest-4"]


def second_node(device, path):
    status = Path(device).stat()
    os.mknod(path, status.st_mode, status.st_rdev)
    return path


async def test_users_by_other_device_names(libvirt, loop_device, tmp_path):
    other = second_node(loop_device, tmp_path / "by-another-name")
    (tmp_path / "link").symlink_to(loop_device)
    libvirt.define("block", f"<source dev='{other}'/>", kind="block")
    for name in (loop_device, other, tmp_path / "link"):
        assert await guard(libvirt, defined=True).users(volume(name)) == [VolumeUser("domain", "block")]


async def test_users_of_pool_volume(libvirt, image):
    libvirt.virsh("pool-create-as", "folder", "dir", "--target", str(image.parent))
    libvirt.define("by-pool", f"<source pool='folder' volume='{image.name}'/>", kind="volume")
    libvirt.virsh("start", "by-pool")
    assert await guard(libvirt).users(volume(image)) == [VolumeUser("domain", "by-pool")]


async def test_users_pool_removed(libvirt, image):
    libvirt.define("forgotten", "<source pool='gone' volume='web-01'/>", kind="volume")
    assert await guard(libvirt, defined=True).users(volume(image)) == []


async def test_users_libvirt_unreachable(libvirt, image, tmp_path):
    away = LibvirtGuard(GuardSettings(uri=f"qemu+unix:///system?socket={tmp_path}/no-socket"), CONTEXT)
    with pytest.raises(TargetUnavailableError, match="the call to libvirt at"):
        await away.users(volume(image))
    absent = guard(libvirt, virsh=str(tmp_path / "virsh"))
    with pytest.raises(TargetUnavailableError, match="virsh could not be started"):
        await absent.users(volume(image))


async def test_users_libvirt_hangs(tmp_path, image):
    virsh = tmp_path / "virsh"
    virsh.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    virsh.chmod(0o755)
    with pytest.raises(TargetUnavailableError, match="did not end within 1 s"):
        await LibvirtGuard(GuardSettings(virsh=str(virsh), timeout=1), CONTEXT).users(volume(image))


async def test_users_cancelled(tmp_path, image):
    virsh, asked = tmp_path / "virsh", tmp_path / "asked"
    os.mkfifo(asked)
    virsh.write_text(f"#!/bin/sh\necho >{asked}\nexec tail -f /dev/null\n")
    virsh.chmod(0o755)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(LibvirtGuard(GuardSettings(virsh=str(virsh)), CONTEXT).users, volume(image))
        await trio.to_thread.run_sync(asked.read_text)
        nursery.cancel_scope.cancel()


def completed(**changes):
    fields = {
        "job_id": "1", "status": "completed", "stage": "done", "percent": 100.0, "volume_name": "web-01",
        "image_url": "http://localhost/image", "correlation_id": None, "error": None, "at": 0.0,
    }  # fmt: skip
    return JobEvent(**{**fields, **changes})


async def test_pool_refresh_shows_new_volume(libvirt, tmp_path):
    libvirt.virsh("pool-create-as", "volumes", "dir", "--target", str(tmp_path))
    (tmp_path / "web-01.raw").write_bytes(bytes(4096))
    observer = PoolRefresher(PoolSettings(uri=libvirt.uri, pools=["volumes"]), CONTEXT)
    for event in (completed(status="running"), completed(status="failed"), completed(volume_name=None)):
        await observer.job_changed(event)
    assert "web-01.raw" not in libvirt.virsh("vol-list", "volumes")
    await observer.job_changed(completed())
    assert "web-01.raw" in libvirt.virsh("vol-list", "volumes")


async def test_pool_refresh_one_pool_missing(libvirt, tmp_path):
    libvirt.virsh("pool-create-as", "volumes", "dir", "--target", str(tmp_path))
    (tmp_path / "web-01.raw").write_bytes(bytes(4096))
    observer = PoolRefresher(PoolSettings(uri=libvirt.uri, pools=["no-such-pool", "volumes"]), CONTEXT)
    with pytest.raises(TargetUnavailableError, match="no-such-pool"):
        await observer.job_changed(completed())
    assert "web-01.raw" in libvirt.virsh("vol-list", "volumes")


@pytest.mark.parametrize("wrong", [{"timeout": 0.5}, {"pools": []}, {"pools": [""]}])
def test_invalid_settings(wrong):
    with pytest.raises(ValueError, match="must"):
        PoolSettings(**{"pools": ["vg0"], **wrong})
