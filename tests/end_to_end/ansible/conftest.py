"""A daemon with images, and ansible-core with the collection."""

from __future__ import annotations

import pytest

from tests.end_to_end.ansible.playing import Ansible, install


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ansible")
    install(folder)
    return folder


@pytest.fixture
def ansible(installed, daemon):
    return Ansible(installed, {"url": daemon.url, "token_file": str(daemon.folder / "client-token")})


def pytest_collection_modifyitems(items):
    for item in items:
        if "end_to_end/ansible" in str(item.path):
            item.add_marker(pytest.mark.slow)
