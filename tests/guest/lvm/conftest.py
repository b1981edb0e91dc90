"""The volume groups the tests share. Each test finds them empty and leaves them so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.guest import disks
from tests.guest.lvm import harness

if TYPE_CHECKING:
    from collections.abc import Iterator


def _group(name: str, disk: str, *options: str) -> Iterator[str]:
    device = disks.disk(disk)
    harness.make_group(name, device, *options)
    yield name
    harness.drop_group(name, device)


@pytest.fixture(scope="session")
def plain_group() -> Iterator[str]:
    # A hyphen in the name, since device-mapper doubles it.
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
    """A volume group of plain volumes, empty."""
    harness.clear(plain_group)
    yield plain_group
    harness.clear(plain_group)


@pytest.fixture
def tiny(tiny_group: str) -> Iterator[str]:
    """A volume group of less than 256 MiB, empty."""
    harness.clear(tiny_group)
    yield tiny_group
    harness.clear(tiny_group)


@pytest.fixture
def sectors(sector_group: str) -> Iterator[str]:
    """A volume group on a disk with sectors of 4096 bytes, empty."""
    harness.clear(sector_group)
    yield sector_group
    harness.clear(sector_group)


@pytest.fixture
def thin(thin_group: str) -> Iterator[str]:
    """A volume group with the thin pool ``pool``, nothing in it."""
    harness.clear(thin_group)
    yield thin_group
    harness.clear(thin_group)
