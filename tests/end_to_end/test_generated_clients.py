"""Runs clients that were generated from api.yaml against a real daemon; ``make clients`` has more languages."""

from __future__ import annotations

import pytest

from contrib.clients.run import run
from contrib.clients.service import running
from contrib.clients.toolchain import built

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running(tmp_path_factory.mktemp("clients")) as found:
        yield found


@pytest.mark.parametrize("name", ["python", "go-oapi-codegen"])
def test_generated_client(service, name):
    run(service, name, built(name))
