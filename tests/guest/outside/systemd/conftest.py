"""A guest with systemd, the packages of two versions in it, and an image server that can be held up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.guest.harness import Guest, Images
from tests.guest.outside.systemd.host import CONFIG, DROP_IN, IMAGE_SERVER, MIB, MORE_IMAGES, Host
from tests.packaging.building import Packages, build, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = ("1.0.0", "1.1.0")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Packages]:
    """The checkout as two versions."""
    return {
        version: build(snapshot(tmp_path_factory.mktemp("source"), version), tmp_path_factory.mktemp("packages"))
        for version in VERSIONS
    }


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Signs the server's certificate and its clients'."""
    return trustme.CA()


@pytest.fixture(scope="module")
def host(images: Images, packages: dict[str, Packages], authority: trustme.CA) -> Iterator[Host]:
    """A virtualization host before the package is installed: a volume group with a thin pool, images, certificates."""
    with Guest(images, init="systemd", ports=[8080]) as guest:
        guest.boot(timeout=400)
        for version, built in packages.items():
            guest.put(built.deb, f"/root/{version}.deb")
        guest.sh("vgcreate -y vg0 /dev/disk/by-id/virtio-thin; lvcreate -y -L 4G -T vg0/thin")
        guest.put(b"".join(bytes([number]) * MIB for number in range(1, 65)), "/srv/images/web.raw")
        guest.sh(MORE_IMAGES, silence=300)
        guest.put(IMAGE_SERVER.encode(), "/root/image-server", 0o755)
        guest.start(["python3", "/root/image-server"], "/root/image-server.log")
        issued = authority.issue_cert("127.0.0.1", "localhost")
        guest.put(b"".join(part.bytes() for part in issued.cert_chain_pems), "/root/tls/server.pem")
        guest.put(issued.private_key_pem.bytes(), "/root/tls/server.key", 0o600)
        guest.put(authority.cert_pem.bytes(), "/root/tls/clients-ca.pem")
        guest.put(CONFIG.encode(), "/root/config.toml")
        guest.put(DROP_IN.encode(), "/root/listen.conf")
        yield Host(guest, authority)


@pytest.fixture(autouse=True)
def journal_of_failures(host: Host, request: pytest.FixtureRequest) -> Iterator[None]:
    """What the service said, where a step failed."""
    before = request.session.testsfailed
    yield
    if request.session.testsfailed > before:
        print(host.guest.run(["journalctl", "--no-pager", "-n", "60", "-u", "libvirt-volume-provisioner*"]).output)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The steps take minutes under emulation."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
