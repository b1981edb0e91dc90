"""A real libvirtd for the tests, with private folders. Its guests run without KVM."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

# The daemon runs in its own mount namespace, in which the folders of the host's domains and pools are empty.
START = """
set -e
for folder in /run/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /etc/libvirt; do
    mkdir -p $folder && mount -t tmpfs tmpfs $folder
done
printf 'stdio_handler = "file"\\nuser = "root"\\ngroup = "root"\\ncgroup_controllers = []\\nnamespaces = []\\n\
security_driver = "none"\\n' > /etc/libvirt/qemu.conf
exec libvirtd --config "$1/libvirtd.conf" --pid-file "$1/pid"
"""

DOMAIN = """
<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='{kind}' device='disk'><driver name='qemu' type='raw'/>{source}<target dev='vda' bus='virtio'/></disk>
<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>
"""


class Libvirt:
    """A libvirtd, with the few calls that the tests need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"qemu+unix:///system?socket={folder}/libvirt-sock"
        (folder / "libvirtd.conf").write_text(
            f'unix_sock_dir = "{folder}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
        )
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", START, "sh", str(folder)], stdout=self._log, stderr=self._log
        )

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()

    def answers(self) -> bool:
        ended = subprocess.run(["virsh", "-q", "-c", self.uri, "version"], capture_output=True, check=False)
        return ended.returncode == 0

    def virsh(self, *words: str) -> str:
        command = ["virsh", "-q", "-c", self.uri, *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def define(self, name: str, source: str, kind: str = "file") -> None:
        xml = self.folder / f"{name}.xml"
        xml.write_text(DOMAIN.format(name=name, source=source, kind=kind))
        self.virsh("define", str(xml))

    def names(self, *words: str) -> list[str]:
        return [line.strip() for line in self.virsh(*words, "--name").splitlines() if line.strip()]

    def clear(self) -> None:
        for name in self.names("list"):
            self.virsh("destroy", name)
        for name in self.names("list", "--all"):
            self.virsh("undefine", name)
        for name in self.names("pool-list"):
            self.virsh("pool-destroy", name)

    def stop(self) -> None:
        """End libvirtd; kill it if it does not stop, as it may under load: how it stops is not tested here."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


@pytest.fixture(scope="session")
def daemon(tmp_path_factory):
    for program in ("libvirtd", "virsh", "qemu-system-x86_64"):
        found = shutil.which(program, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        assert found, f"{program} is missing; contrib/dev/setup test installs it"
    libvirt = Libvirt(tmp_path_factory.mktemp("libvirt"))
    try:
        libvirt.wait()
        yield libvirt
    finally:
        libvirt.stop()


@pytest.fixture
def libvirt(daemon):
    yield daemon
    daemon.clear()


@pytest.fixture
def loop_device(image):
    """Attach ``image`` to a loop device and return its path."""
    command = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "web-01.raw"
    path.write_bytes(bytes(1024 * 1024))
    return path
