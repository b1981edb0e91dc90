"""A host with systemd and libvirt, packages of two versions, and an image server that can pause its transfers.

The host is a guest with LVM, where each installation takes two minutes. With ``LVP_HOST=container`` it is a container
with a file target, where an installation takes seconds.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.guest.harness import Container, Guest, Images, prepare
from tests.guest.outside.systemd.host import (
    CONFIG,
    FILES,
    IMAGE_SERVER,
    IMAGE_SIZE,
    LISTEN,
    MIB,
    MORE_IMAGES,
    SECRETS,
    THIN,
    Host,
)
from tests.packaging.building import Packages, build, build_plugin, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = ("1.0.0", "1.1.0")
IN_CONTAINER = os.environ.get("LVP_HOST") == "container"
# Ansible reaches the host through its namespaces, which a guest does not share with this machine.
collect_ignore = [] if IN_CONTAINER else ["test_8_ansible.py"]


def machine(images: Images) -> Guest | Container:
    return Container(images, ports=[8080]) if IN_CONTAINER else Guest(images, init="systemd", ports=[8080])


@pytest.fixture(scope="session")
def images() -> Images:
    """The images of a virtualization host."""
    return prepare("hypervisor")


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """The CA of the server's and the clients' certificates."""
    return trustme.CA()


@pytest.fixture(scope="session")
def host(images: Images, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A virtualization host before the installation of the package: storage for volumes, images, certificates."""
    storage = FILES if IN_CONTAINER else THIN
    sources = {version: snapshot(tmp_path_factory.mktemp("source"), version) for version in VERSIONS}
    folders = {version: tmp_path_factory.mktemp("packages") for version in VERSIONS}
    with machine(images) as guest, ThreadPoolExecutor() as builders:
        python = f"python{images.python}"
        plugin = builders.submit(build_plugin, sources["1.0.0"], tmp_path_factory.mktemp("plugin"), PYTHON=python)
        built = {
            version: builders.submit(build, sources[version], folders[version], PYTHON=python) for version in VERSIONS
        }
        guest.boot(timeout=400)
        guest.sh(storage.make)
        guest.put(b"".join(bytes([number]) * MIB for number in range(1, IMAGE_SIZE // MIB + 1)), "/srv/images/web.raw")
        guest.sh(MORE_IMAGES, silence=300)
        guest.put(IMAGE_SERVER.encode(), "/root/image-server", 0o755)
        guest.start(["python3", "/root/image-server"], "/root/image-server.log")
        issued = authority.issue_cert("127.0.0.1", "localhost")
        guest.put(b"".join(part.bytes() for part in issued.cert_chain_pems), "/root/tls/server.pem")
        guest.put(issued.private_key_pem.bytes(), "/root/tls/server.key", 0o600)
        guest.put(authority.cert_pem.bytes(), "/root/tls/clients-ca.pem")
        guest.put((CONFIG + storage.target).encode(), "/root/config.toml")
        guest.put(LISTEN.encode(), "/root/listen.conf")
        guest.put(SECRETS.encode(), "/root/secrets.conf")
        packages = {version: future.result() for version, future in built.items()}
        put_packages(guest, packages, plugin.result())
        yield Host(guest, authority, storage, packages)


def put_packages(guest: Guest | Container, built: dict[str, Packages], plugin: Packages) -> None:
    for version, packages in built.items():
        guest.put(packages.deb, f"/root/{version}.deb")
        guest.put(packages.rpm, f"/root/{version}.rpm")
    guest.put(plugin.any("*.deb"), "/root/plugin.deb")
    guest.put(plugin.any("*.rpm"), "/root/plugin.rpm")


@pytest.fixture(autouse=True)
def journal_of_failures(host: Host, request: pytest.FixtureRequest) -> Iterator[None]:
    """Print the service's journal if a step fails. Reset systemd's start limit before each step."""
    host.guest.run(["systemctl", "reset-failed"])
    before = request.session.testsfailed
    yield
    if request.session.testsfailed > before:
        print(host.guest.run(["journalctl", "--no-pager", "-n", "60", "-u", "libvirt-volume-provisioner*"]).output)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the steps as slow: they take minutes under emulation."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
