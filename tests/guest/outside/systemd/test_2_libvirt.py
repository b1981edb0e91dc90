"""The service with a real libvirtd: pools show new volumes, and volumes that domains use are not changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.guest.outside.systemd.host import FILES, NAME, SERVICE, Host

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES = """
[guards.libvirt]
plugin = "libvirt"
[observers.pools]
plugin = "libvirt-pools"
pools = ["vg0"]
"""

# The reload in the tests before gave this client the role admin.
ADMIN = "viewer.example.org"

# Its disk has no operating system. The firmware finds nothing to boot, so the guest keeps running with its disk open.
DOMAIN = """
<domain type='qemu'><name>mail server</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='volume' device='disk'><driver name='qemu' type='raw'/><source pool='vg0' volume='{volume}'/>
<target dev='vda' bus='virtio'/></disk>
<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>
"""

# Runs only the plugin, without root.
AS_ANOTHER_USER = """
import sys
sys.path.append("/usr/lib/libvirt-volume-provisioner/site")
import trio
from pathlib import Path
from lvp_guard_libvirt import GuardSettings, LibvirtGuard, PoolRefresher, PoolSettings
from provisioner.contracts import BackEndContext, JobEvent, Volume

context = BackEndContext("libvirt", Path("/nonexistent"))

async def main():
    users = await LibvirtGuard(GuardSettings(), context).users(Volume("mail-01", "main", sys.argv[1], 1 << 30))
    print("users:", *users, flush=True)
    event = JobEvent(job_id="1", status="completed", stage="done", percent=100.0, volume_name="mail-01", image_url="",
                     correlation_id=None, error=None, at=0.0)
    await PoolRefresher(PoolSettings(pools=["vg0"]), context).job_changed(event)
    print("the pool was asked")

trio.run(main)
"""


def virsh(host: Host, *words: str) -> str:
    return host.guest.sh(" ".join(["virsh", "-q", *words]), silence=400)


@pytest.fixture(scope="module", autouse=True)
def libvirt(host: Host) -> Iterator[None]:
    """A libvirt pool for the volume group, and the service configured with the libvirt plugins."""
    if host.storage is FILES:  # libvirt cannot create control groups in a container
        host.guest.sh("echo 'cgroup_controllers = []' >> /etc/libvirt/qemu.conf")
    virsh(host, "pool-define-as vg0", host.storage.pool)
    virsh(host, "pool-start vg0")
    host.guest.put(DOMAIN.format(volume=f"mail-01{host.storage.suffix}").encode(), "/root/domain.xml")
    host.guest.put(AS_ANOTHER_USER.encode(), "/srv/as-another-user")
    host.guest.put(TABLES.encode(), "/root/libvirt.toml")
    host.guest.sh(f"cat /root/libvirt.toml >> /etc/{NAME}/config.toml")
    host.systemctl("restart", SERVICE)
    yield
    host.guest.sh(f"cp /root/good.toml /etc/{NAME}/config.toml")  # later tests restart the service


def volumes(host: Host) -> set[str]:
    return {line.split()[0].removesuffix(host.storage.suffix) for line in virsh(host, "vol-list vg0").splitlines()}


def test_pool_shows_a_new_volume(host: Host) -> None:
    assert "mail-01" not in volumes(host)
    assert host.completes(host.submit("mail-01", target=host.storage.shown), "mail-01", "web")
    # Observers are notified right after the job has ended for its clients.
    host.wait_until("the pool was refreshed", 60, lambda: "mail-01" in volumes(host))


def test_disk_of_a_running_domain_is_kept(host: Host) -> None:
    virsh(host, "define /root/domain.xml")
    virsh(host, "start", "'mail server'")
    job = host.wait_ended(host.submit("mail-01", image="db-05", target=host.storage.shown))
    assert job["status"] == "failed"
    assert "in use by domain mail server" in job["error"]
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        host.call("DELETE", f"/api/v1/volumes/{host.storage.shown}/mail-01", who=ADMIN)
    assert refusal.value.response.status_code == 409
    assert "domain mail server" in refusal.value.response.text
    assert host.holds("mail-01", "web")


def as_user(host: Host, name: str, groups: str) -> str:
    command = ["setpriv", f"--reuid={name}", f"--regid={name}", groups, "python3", "-IS", "/srv/as-another-user"]
    return host.guest.run([*command, host.device("mail-01")], silence=400).output


def test_permissions_of_the_libvirt_plugins(host: Host) -> None:
    """Any user can look up domains; only root and the group libvirt can refresh pools."""
    host.guest.sh("useradd --user-group guest-user; useradd --user-group --groups libvirt guest-admin")
    said = as_user(host, "guest-user", "--clear-groups")
    assert "users: domain mail server" in said
    assert "the pool was asked" not in said
    assert "storage pools were not refreshed: vg0" in said
    said = as_user(host, "guest-admin", "--init-groups")
    assert "users: domain mail server" in said
    assert "the pool was asked" in said


def test_disk_of_a_stopped_domain_is_replaced(host: Host) -> None:
    virsh(host, "destroy", "'mail server'")
    assert host.completes(host.submit("mail-01", image="db-05", target=host.storage.shown), "mail-01", "db-05")
    host.call("DELETE", f"/api/v1/volumes/{host.storage.shown}/mail-01", who=ADMIN)
    assert "mail-01" not in host.volumes()
