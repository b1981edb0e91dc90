"""A cache for each test."""

import pytest

from tests.provisioner.cache.host import Host


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)
