"""Tests that the rule about plain HTTP applies to passed sockets as to ``bind``."""

from __future__ import annotations

import socket

import pytest
import trustme

from provisioner.config import ServerSettings
from provisioner.contracts.errors import ConfigError
from provisioner.server.listener import Listener


@pytest.fixture
def passing(monkeypatch):
    """Return a function that passes a socket to a listener, as systemd does."""
    listeners = []

    def passing(family, address, **server):
        made = socket.socket(family)
        made.bind(address)
        fd = made.detach()
        monkeypatch.setattr("provisioner.linux.systemd.passed_sockets", lambda: [fd])
        listener = Listener(ServerSettings(**server))
        listeners.append(listener)
        return listener

    yield passing
    for listener in listeners:
        for sock in listener._sockets:
            sock.close()


@pytest.mark.parametrize(
    ("family", "address"),
    [(socket.AF_INET, ("0.0.0.0", 0)), (socket.AF_INET6, ("::", 0)), (socket.AF_INET6, ("::ffff:0.0.0.0", 0))],
)
def test_bind_plain_http_off_loopback(passing, family, address):
    with pytest.raises(ConfigError, match=r"a socket passed to the service, would be served over plain HTTP"):
        passing(family, address).bind()
    passing(family, address, allow_plain_http=True).bind()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_bind_plain_http_on_loopback(passing, family, tmp_path):
    local = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0), socket.AF_UNIX: str(tmp_path / "s")}
    passing(family, local[family]).bind()


def test_bind_tls_off_loopback(passing, tmp_path):
    file = tmp_path / "server.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)
    passing(socket.AF_INET, ("0.0.0.0", 0), tls_certificate=str(file), tls_key=str(file)).bind()
