"""A cache for each test."""

import subprocess

import pytest

from tests.provisioner.cache.host import Host


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 4 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "lvp-test", where], check=True)
    yield where
    subprocess.run(["umount", "-l", where], check=True)
