"""A cloud image boots from its volume, and cloud-init reads the seed that the service made beside it."""

from __future__ import annotations

import hashlib
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.daemon import Daemon, plain_config
from tests.guest.harness import acceleration
from tests.guest.harness.cloud_image import END, cloud_image
from tests.guest.harness.machine import KERNEL_OPTIONS
from tests.servers.images import image_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.guest.harness.cloud_image import CloudImage

pytestmark = pytest.mark.slow

# Seconds; cloud-init under emulation takes minutes on a busy machine.
BOOT = 1800
USER_DATA = """\
#cloud-config
locale: false
ssh_genkeytypes: [ed25519]
write_files:
  - path: /etc/made-by-seed
    content: |
      the seed was read
"""
# Drivers that take seconds each under emulation, and that no disk here needs.
UNUSED = "kvm,kvm_amd,powernow_k8,aesni_intel,psmouse,button"


def provisioned(image: CloudImage, folder: Path) -> tuple[Path, Path]:
    """Let the service make the volume, twice the image's size, and its seed; return both."""
    served = folder / "served"
    served.mkdir()
    (served / "cloud.qcow2").symlink_to(image.file)
    with image.file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    daemon = Daemon(folder / "d", plain_config(folder / "d")).start()
    with image_server(served) as server:
        asked = {"volume_size_gb": 3, "checksum": digest, "cloud_init": {"user_data": USER_DATA}}
        job = daemon.job_ended(daemon.submit(server.of("cloud.qcow2"), "web-01", **asked))
    assert job["status"] == "completed", job
    assert daemon.stop() == 0
    return daemon.volume("web-01"), daemon.volume("web-01-seed")


def test_cloud_image_boots_and_reads_its_seed(tmp_path: Path) -> None:
    image = cloud_image()
    volume, seed = provisioned(image, tmp_path)
    console = tmp_path / "console"
    options = " ".join([*KERNEL_OPTIONS, f"module_blacklist={UNUSED}"])
    qemu = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "pc"),
        *(*acceleration.options(image.kernel), "-smp", "2", "-m", "1024M"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", options),
        *("-serial", f"file:{console}", "-device", "virtio-rng-pci"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-drive", f"file={volume},format=raw,if=virtio,cache=unsafe"),
        *("-drive", f"file={seed},format=raw,if=virtio,readonly=on"),
    ]
    subprocess.run(qemu, stdin=subprocess.DEVNULL, timeout=BOOT, check=True)
    report = console.read_text(errors="replace").replace("\r", "")
    assert END in report, report[-3000:]
    assert re.search(r"^status: done$", report, re.MULTILINE), report[-3000:]
    assert "DataSourceNoCloud" in report
    assert "the seed was read" in report
    assert "host: web-01" in report, "the volume's name is the host's"
    size = re.search(rf"^ *(\d+)\n{END}", report, re.MULTILINE)
    assert size is not None
    assert int(size[1]) > 2500, "the file system grew to the volume's size"
