"""The hostile images, a server for them, and a daemon that must survive all of them within its memory limit."""

from __future__ import annotations

import functools
import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.conftest import vouch
from tests.end_to_end.daemon import Daemon, plain_config
from tests.hostile.forge import MIB, SECRET, Workshop
from tests.servers.images import image_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONVERTERS = {
    "native": dict.fromkeys(("vmdk", "vdi", "vhdx", "vpc"), "qemu-img"),
    "qemu-img": dict.fromkeys(("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"), "qemu-img"),
}
# About 75 MiB when idle, 130 for a decompressor, the rest is what malloc does not return under load.
MEMORY_LIMIT = 288 * MIB


@dataclass
class Host:
    """A daemon and one volume that no hostile image may change."""

    daemon: Daemon
    shop: Workshop
    of: Callable[[str], str]

    def serve(self, name: str, content: bytes) -> str:
        """Publish a file with that content and its checksum; return its url."""
        file = self.shop.folder / name
        file.write_bytes(content)
        vouch(file)
        return self.of(name)

    def ask(self, url: str, kind: str, **more: object) -> dict:
        """Submit a job for the existing volume and return it when it has ended."""
        return self.daemon.job_ended(self.daemon.submit(url, "web01", kind, **more))

    def check_unchanged(self) -> None:
        """Check that the volume is unchanged, with no leftover files or processes and no data of the host."""
        assert self.daemon.process.poll() is None
        assert self.daemon.children() == []
        files = self.daemon.files()
        assert {name for name in files if name.startswith("volumes/")} == {"volumes/web01.raw"}
        assert not {name for name in files if re.search(r"partial|tmp", name)}
        with self.daemon.volume("web01").open("rb") as volume:
            assert volume.read(MIB) == self.shop.raw.read_bytes()
            assert SECRET not in volume.read(16 * MIB)

    @property
    def peak_memory(self) -> int:
        """Return the daemon's peak resident memory in bytes."""
        status = Path(f"/proc/{self.daemon.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def made(shop):
    """Return a function that makes the image of a case, once."""
    return functools.cache(lambda case: case.make(shop))


@pytest.fixture(scope="module", params=CONVERTERS)
def converter(request):
    return request.param


@pytest.fixture(scope="module")
def host(tmp_path_factory, shop, converter):
    folder = tmp_path_factory.mktemp("hostile")
    with image_server(shop.folder) as server:
        vouch(shop.raw)
        with running(folder / "d", shop, server.of, converters=CONVERTERS[converter]) as host:
            yield host


@contextmanager
def running(folder: Path, shop: Workshop, of: Callable[[str], str], **tables: object) -> Iterator[Host]:
    """Run a daemon with one volume made from the workshop's disk; at the end check its memory and its log."""
    daemon = Daemon(folder, plain_config(folder, **tables)).start()
    try:
        host = Host(daemon, shop, of)
        digest = hashlib.sha256(shop.raw.read_bytes()).hexdigest()
        job = host.ask(of(shop.raw.name), "raw", checksum=f"sha256:{digest}")
        assert job["status"] == "completed", job
        yield host
        print(f"the daemon used {host.peak_memory / MIB:.0f} MiB at most")
        assert host.peak_memory < MEMORY_LIMIT
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log_file.read_text()
    finally:
        if daemon.process.poll() is None:
            daemon.kill()
