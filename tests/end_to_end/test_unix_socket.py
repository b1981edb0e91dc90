"""Tests of a unix socket: the real daemon listens on it, and the real ``lvp`` uses it."""

from __future__ import annotations

import stat

import pytest
import trustme

from tests.end_to_end.daemon import Daemon, plain_config

pytestmark = pytest.mark.slow


@pytest.fixture
def path(tmp_path):
    return tmp_path / "api.sock"


@pytest.fixture
def daemon(make_daemon, path):
    return make_daemon(server={"bind": [f"unix:{path}", "127.0.0.1:0"]}).start()


def test_unix_socket(daemon, path, server):
    """The socket is for its owner and group, a token is needed there too, and it is gone at the end."""
    assert daemon.url == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    done = daemon.lvp("job", "submit", server.of("zlib.qcow2"), "web-01", "1", "--wait")
    assert done.status == 0, done.err
    refused = daemon.lvp("job", "list", "--token", "lvp_wrong")
    assert (refused.status, refused.out) == (4, "")
    assert "the API token is unknown" in refused.err
    assert daemon.stop() == 0
    assert not path.exists()
    gone = daemon.lvp("health")
    assert (gone.status, gone.err.splitlines()[-1].split(";")[0]) == (5, f"Error: nothing listens at unix:{path}")


def test_stale_unix_socket(daemon, path):
    daemon.kill()
    assert path.is_socket()
    daemon.start()
    assert daemon.lvp("health").status == 0


def test_unix_socket_in_use(daemon, path, tmp_path):
    """A second daemon neither takes the socket nor removes it."""
    other = Daemon(tmp_path / "other", plain_config(tmp_path / "other", server={"bind": [f"unix:{path}"]}))
    other.launch()
    status, log = other.ended()
    assert status == 1
    assert f"cannot listen on unix:{path}: Address already in use" in log
    assert daemon.lvp("health").status == 0


def test_unix_socket_where_a_file_is(make_daemon, path):
    path.write_text("precious")
    daemon = make_daemon(server={"bind": [f"unix:{path}"]})
    daemon.launch()
    status, log = daemon.ended()
    assert status == 1
    assert f"cannot listen on unix:{path}: a file that is not a socket has this name" in log
    assert path.read_text() == "precious"


@pytest.mark.parametrize(("mode", "status"), [("optional", 0), ("required", 4)])
def test_unix_socket_beside_tls(make_daemon, path, tmp_path, mode, status):
    """The socket needs no TLS, unless every client must present a certificate: then a token alone is refused."""
    pem = tmp_path / "server.pem"
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = {"tls_certificate": str(pem), "tls_key": str(pem), "client_ca": str(tmp_path / "ca.pem")}
    daemon = make_daemon(server={"bind": [f"unix:{path}"], "client_certificate": mode, **tls}).start()
    assert daemon.lvp("job", "list").status == status
