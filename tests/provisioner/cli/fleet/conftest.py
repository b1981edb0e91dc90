"""Fixtures: hosts that are the recorded server under several names."""

from __future__ import annotations

import pytest

from provisioner.cli.client_settings import ClientSettings
from provisioner.cli.fleet.calls import Limits
from provisioner.cli.fleet.hosts import Fleet
from provisioner.cli.host_settings import Host


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("provisioner.cli.client.REPEAT_PAUSES", ())


@pytest.fixture
def fleet_at():
    """Return a function that makes a fleet of addresses: a, b, c and so on."""

    def make(*urls, seconds=30.0, parallel=8):
        hosts = [Host(name, ClientSettings(url)) for name, url in zip("abcdefgh", urls, strict=False)]
        return Fleet(hosts, Limits(parallel, seconds))

    return make
