"""Reloading: what changes at once, what is refused, and what is said to need a restart."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing
import trustme

from provisioner.auth.authenticator import Authenticator
from provisioner.auth.tokens import TokenFile
from provisioner.config import load, parse
from provisioner.contracts.errors import ConfigError
from provisioner.reload import Reloader, needs_restart
from provisioner.server.listener import Listener

TARGET = {"targets": {"files": {"plugin": "file", "directory": "/srv/volumes"}}}


def config(**sections):
    return parse({**TARGET, **sections}, "test")


class Server:
    """A certificate's files, and what a client sees of a listener that uses them."""

    def __init__(self, folder):
        self.certificate, self.key, self.authority = folder / "server.pem", folder / "server.key", folder / "ca.pem"
        self.replace()

    def replace(self):
        self.ca = trustme.CA()
        issued = self.ca.issue_cert("localhost")
        issued.private_key_pem.write_to_path(self.key)
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.ca.cert_pem.write_to_path(self.authority)

    @property
    def section(self):
        return {
            "bind": ["127.0.0.1:0"],
            "tls_certificate": str(self.certificate),
            "tls_key": str(self.key),
            "client_ca": str(self.authority),
            "client_certificate": "required",
        }


async def handshake(listener, trusted, client_ca, name="localhost"):
    """The common name the server saw; raises trio.BrokenResourceError if either side refuses."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    trusted.configure_trust(context)
    client_ca.issue_cert("client.example.org", common_name="client").configure_cert(context)
    near, far = trio.testing.memory_stream_pair()
    client, server = trio.SSLStream(near, context, server_hostname=name), listener.tls.wrap(far)
    async with near, far, trio.open_nursery() as nursery:
        # TLS 1.3: the server judges the client's certificate after the client has done its part.
        nursery.start_soon(client.do_handshake)
        await server.do_handshake()
    subject = server.getpeercert()["subject"]
    return next(value for rdn in subject for key, value in rdn if key == "commonName")


async def refused(listener, trusted, client_ca):
    try:
        await handshake(listener, trusted, client_ca)
    except BaseExceptionGroup as group:
        return group.split(trio.BrokenResourceError)[1] is None
    return False


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path)


@pytest.fixture
async def start(server, tmp_path):
    """A reloader with an open listener, and the list whose last entry is the current configuration."""
    listeners = []

    def start(**sections):
        files = [config(server=server.section, **sections)]
        listener = Listener(files[0].server)
        listener.bind()
        listeners.append(listener)
        authenticator = Authenticator(files[0].auth, TokenFile(tmp_path / "tokens.json"))

        def read():
            if isinstance(files[-1], Exception):
                raise files[-1]
            return files[-1]

        return Reloader(files[0], read, listener, authenticator), files, listener, authenticator

    yield start
    for listener in listeners:
        for plain in listener.listen()[1]:
            await plain.aclose()


async def test_reload_changes_certificates(start, server):
    reloader, _, listener, _ = start()
    old = server.ca
    assert await handshake(listener, old, old) == "client"
    server.replace()
    assert await handshake(listener, old, old) == "client"  # files alone change nothing
    await reloader.reload()
    for name in ("localhost", None):  # also for clients that send no server name
        assert await handshake(listener, server.ca, server.ca, name) == "client"
    assert await refused(listener, old, server.ca)
    assert await refused(listener, server.ca, old)  # the authority that is gone no longer admits clients


async def test_reload_with_mismatched_key(start, server):
    reloader, files, listener, authenticator = start(auth={"certificate_roles": {"client": "viewer"}})
    old = server.ca
    server.replace()
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(server.key)
    files.append(config(server=server.section, auth={"certificate_roles": {"client": "admin"}}))
    with structlog.testing.capture_logs() as lines:
        await reloader.reload()
    assert [line["log_level"] for line in lines] == ["error"]
    assert str(server.key) in lines[0]["reason"]
    assert await handshake(listener, old, old) == "client"
    assert authenticator._settings.certificate_roles == {"client": "viewer"}  # not by halves


async def test_reload_changes_roles_and_log_level(start, server):
    reloader, files, _, authenticator = start(auth={"certificate_roles": {"client": "viewer"}})
    root = logging.getLogger()
    before = root.level
    try:
        files.append(
            config(server=server.section, auth={"certificate_roles": {"client": "admin"}}, log={"level": "debug"})
        )
        await reloader.reload()
        assert authenticator._settings.certificate_roles == {"client": "admin"}
        assert root.level == logging.DEBUG
    finally:
        root.setLevel(before)


@pytest.mark.parametrize(
    "wrong", [ConfigError("config.toml: is not TOML"), config(targets={"files": {"plugin": "no-such-plugin"}})]
)
async def test_reload_with_invalid_file(start, wrong):
    reloader, files, _, authenticator = start()
    files.append(wrong)
    with structlog.testing.capture_logs() as lines:
        await reloader.reload()
    assert lines[0]["event"] == "the new configuration is invalid; the old one stays in force"
    assert authenticator._settings is files[0].auth


async def test_reload_notifies_service_manager(start, monkeypatch, tmp_path):
    reloader, *_ = start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        await reloader.reload()
        first, second = manager.recv(4096), manager.recv(4096)
    assert first.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert second == b"READY=1"


def test_needs_restart_names_keys():
    started = config(jobs={"max_concurrent": 2}, log={"level": "info"})
    wanted = config(
        jobs={"max_concurrent": 4},
        log={"level": "debug", "format": "json"},
        auth={"default_certificate_role": "viewer"},
        sources={"web": {"plugin": "http", "urls": ["https://images.example.org/"]}},
        targets={"files": {"plugin": "file", "directory": "/srv/other"}},
    )
    assert needs_restart(started, wanted) == ["jobs.max_concurrent", "log.format", "sources.web", "targets.files"]
    assert needs_restart(started, started) == []


def test_needs_restart_for_first_certificate(server):
    assert "server.tls_certificate" in needs_restart(config(), config(server=server.section))


async def test_look_reloads_changed_files(start, server):
    reloader, _, listener, _ = start()
    old = server.ca
    await reloader.look()
    server.replace()
    with structlog.testing.capture_logs() as lines:
        await reloader.look()
        await reloader.look()  # once is enough
    assert [line["event"] for line in lines] == [
        "a client authority was removed, its open connections closed",
        "TLS files changed; new connections use them",
    ]
    assert await handshake(listener, server.ca, server.ca) == "client"
    assert await refused(listener, old, server.ca)


async def test_look_with_half_a_change(start, server):
    reloader, _, listener, _ = start()
    old, key = server.ca, server.key.read_bytes()
    server.replace()
    new_key = server.key.read_bytes()
    server.key.write_bytes(key)  # the certificate is there already, its key is not
    with structlog.testing.capture_logs() as lines:
        await reloader.look()
        await reloader.look()
    assert [line["log_level"] for line in lines] == ["warning"]
    assert await handshake(listener, old, old) == "client"
    server.key.write_bytes(new_key)
    await reloader.look()
    assert await handshake(listener, server.ca, server.ca) == "client"


async def test_watch_warns_of_expiry(start, server):
    reloader, files, _, _ = start()
    assert reloader.warnings() == []
    files.append(config(server={**server.section, "warn_before_expiry": "400000d"}))
    with structlog.testing.capture_logs() as lines:
        await reloader.reload()
    warned = [line["event"] for line in lines if line["log_level"] == "warning"]
    assert len(warned) == 2
    assert warned == reloader.warnings()
    assert warned[0].startswith("the server's certificate expires on ")


def test_needs_restart_ignores_limits_and_lists(server):
    wanted = config(
        server={**server.section, "client_crl": "/x", "tls_minimum": "1.2", "warn_before_expiry": "1d"},
        auth={"certificates": {"ci": {"role": "viewer"}}, "revoked_certificates": ["serial:1"], "max_jobs": 3},
    )
    assert needs_restart(config(server=server.section), wanted) == []
    assert needs_restart(config(), config(audit={"file": "/x"}, auth={"token_key": "file:/k"})) == [
        "audit.file", "auth.token_key"
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["pipe", "device", "large", "deep"])
async def test_reload_with_file_of_wrong_type(start, what, tmp_path):
    """SIGHUP with such a file is answered at once, and the old configuration stays."""
    reloader, _, _, authenticator = start()
    before, path = authenticator._settings, tmp_path / "config.toml"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path = Path("/dev/zero")
    else:
        path.write_bytes(b"x = " + b"[" * 100_000 if what == "deep" else bytes(2**20 + 1))
    reloader._read = lambda: load(path)
    with structlog.testing.capture_logs() as lines, trio.fail_after(60):
        await reloader.reload()
    assert [line["event"] for line in lines] == ["the new configuration is invalid; the old one stays in force"]
    assert str(path) in lines[0]["reason"]
    assert authenticator._settings is before


@pytest.mark.parametrize("key", ["tls_certificate", "tls_key", "client_ca", "client_crl"])
async def test_reload_with_pipe_as_tls_file(start, server, tmp_path, key):
    reloader, files, listener, _ = start()
    os.mkfifo(tmp_path / "pipe")
    files.append(config(server={**server.section, key: str(tmp_path / "pipe")}))
    with structlog.testing.capture_logs() as lines, trio.fail_after(60):
        await reloader.reload()
    assert lines[0]["reason"] == f"{tmp_path / 'pipe'} cannot be read: not a regular file"
    assert await handshake(listener, server.ca, server.ca) == "client"


async def test_reload_with_hanging_file_system(start, server, monkeypatch, nursery):
    """The old configuration stays, the next request is heard, and there is never a second thread."""
    monkeypatch.setattr("provisioner.reload.READ_TIMEOUT", 0.1)
    reloader, files, _, authenticator = start()
    gate, read = threading.Event(), []

    def hang():
        read.append(1)
        gate.wait()
        return files[-1]

    reloader._read = hang
    nursery.start_soon(reloader.run)
    try:
        with structlog.testing.capture_logs() as lines:
            for count in (1, 2, 3):
                reloader.request()
                while len(lines) < count:  # noqa: ASYNC110 - the log is what can be seen of it
                    await trio.sleep(0.01)
        assert len(read) == 1
        assert lines[-1]["reason"] == "its files could not be read within 0.1 s"
        assert authenticator._settings is files[0].auth
    finally:
        gate.set()
    monkeypatch.setattr("provisioner.reload.READ_TIMEOUT", 60.0)
    files.append(config(server=server.section, auth={"certificate_roles": {"a": "admin"}}))
    reloader._read = lambda: files[-1]
    reloader.request()
    with trio.fail_after(60):
        while authenticator._settings is not files[-1].auth:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_reload_with_failing_plugin(start):
    reloader, files, _, _ = start()
    files.append(TypeError("a plugin's bug"))
    with structlog.testing.capture_logs() as lines:
        await reloader.reload()
    assert lines[0]["event"] == "the new configuration is invalid; the old one stays in force"
