"""The hostile images, a server for them, and a daemon that has to outlive them all within its memory."""

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
MEMORY_LIMIT = 200 * MIB


@dataclass
class Host:
    """A host with one volume of its own, which no image may change, and a daemon."""

    daemon: Daemon
    shop: Workshop
    of: Callable[[str], str]

    def serve(self, name: str, content: bytes) -> str:
        """The url of a file with that content, and a checksum of it beside it."""
        file = self.shop.folder / name
        file.write_bytes(content)
        vouch(file)
        return self.of(name)

    def ask(self, url: str, kind: str, **more: object) -> dict:
        """The job of a volume that is there, at its end."""
        return self.daemon.job_ended(self.daemon.submit(url, "web01", kind, **more))

    def check_nothing_is_left(self) -> None:
        """The volume is as it was, and there is nothing beside it: no file, no process, nothing of the host's."""
        assert self.daemon.process.poll() is None
        assert self.daemon.children() == []
        files = self.daemon.files()
        assert {name for name in files if name.startswith("volumes/")} == {"volumes/web01.raw"}
        assert not {name for name in files if re.search(r"partial|unpack|tmp", name)}
        with self.daemon.volume("web01").open("rb") as volume:
            assert volume.read(MIB) == self.shop.raw.read_bytes()
            assert SECRET not in volume.read(16 * MIB)

    @property
    def most_memory(self) -> int:
        """The most bytes that the daemon ever held."""
        status = Path(f"/proc/{self.daemon.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def made(shop):
    """The content of a row's image, made once."""
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
    """A daemon with a volume of the workshop's disk, whose memory and log are looked at in the end."""
    daemon = Daemon(folder, plain_config(folder, **tables)).start()
    try:
        host = Host(daemon, shop, of)
        digest = hashlib.sha256(shop.raw.read_bytes()).hexdigest()
        job = host.ask(of(shop.raw.name), "raw", checksum=f"sha256:{digest}")
        assert job["status"] == "completed", job
        yield host
        print(f"the daemon held {host.most_memory / MIB:.0f} MiB at most")
        assert host.most_memory < MEMORY_LIMIT
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log_file.read_text()
    finally:
        if daemon.process.poll() is None:
            daemon.kill()
