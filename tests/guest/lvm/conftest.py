"""The volume groups that the tests share. They are emptied after each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.guest import disks
from tests.guest.lvm import harness

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as slow that a class with ``in_every_run`` does not list there."""
    for item in items:
        listed = getattr(getattr(item, "cls", None), "in_every_run", None)
        if listed is not None and getattr(item, "originalname", item.name) not in listed:
            item.add_marker(pytest.mark.slow)


def _group(name: str, disk: str, *options: str) -> Iterator[str]:
    device = disks.disk(disk)
    harness.make_group(name, device, *options)
    yield name
    harness.drop_group(name, device)


@pytest.fixture(scope="session")
def plain_group() -> Iterator[str]:
    # The name has a hyphen because device-mapper doubles it.
    yield from _group("lab-plain", "plain")


@pytest.fixture(scope="session")
def tiny_group() -> Iterator[str]:
    yield from _group("lab-tiny", "tiny")


@pytest.fixture(scope="session")
def sector_group() -> Iterator[str]:
    yield from _group("lab-4kn", "4kn")


@pytest.fixture(scope="session")
def thin_group() -> Iterator[str]:
    for name in _group("lab-thin", "thin"):
        harness.lvm(
            "lvcreate", "--yes", "--type", "thin-pool", "-L", "1g", "--poolmetadatasize", "8m", "-n", "pool", name
        )
        yield name


@pytest.fixture
def plain(plain_group: str) -> Iterator[str]:
    """An empty volume group for plain volumes."""
    yield plain_group
    harness.clear(plain_group)


@pytest.fixture
def tiny(tiny_group: str) -> Iterator[str]:
    """An empty volume group of less than 256 MiB."""
    yield tiny_group
    harness.clear(tiny_group)


@pytest.fixture
def sectors(sector_group: str) -> Iterator[str]:
    """An empty volume group on a disk with 4096-byte sectors."""
    yield sector_group
    harness.clear(sector_group)


@pytest.fixture
def thin(thin_group: str) -> Iterator[str]:
    """A volume group with the empty thin pool ``pool``."""
    yield thin_group
    harness.clear(thin_group)
