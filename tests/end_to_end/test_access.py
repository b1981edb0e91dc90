"""Tests of access to a running daemon: its token key, its audit log, changing certificates, and tokens in use."""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import subprocess

import httpx
import pytest
import trustme

from provisioner.auth.tokens import TokenFile
from tests.end_to_end.daemon import LVP, TIMEOUT, until

pytestmark = pytest.mark.slow


def audit_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_audit_log_mode_and_rotation(make_daemon, tmp_path):
    file = tmp_path / "audit.log"
    daemon = make_daemon(audit={"file": str(file)}).start()
    daemon.call("POST", "/api/v1/cache/fetch", {})
    until(lambda: len(audit_lines(file)) == 1)
    file.rename(tmp_path / "audit.log.1")
    daemon.call("POST", "/api/v1/cache/prune")
    until(lambda: file.exists() and len(audit_lines(file)) == 1)
    os.truncate(file, 0)  # logrotate's copytruncate
    daemon.call("DELETE", "/api/v1/volumes/files/x")
    until(lambda: len(audit_lines(file)) == 1)
    assert {path.stat().st_mode & 0o777 for path in (file, tmp_path / "audit.log.1")} == {0o600}
    daemon.call("POST", "/api/v1/jobs", {"image_url": "http://elsewhere.example/", "volume_name": "x"})
    assert daemon.stop() == 0
    lines = audit_lines(tmp_path / "audit.log.1") + audit_lines(file)
    assert [(line["status"], line["principal"], line["via"]) for line in lines] == [
        (400, "client", "token"), (403, "client", "token"), (400, "client", "token")
    ]  # fmt: skip
    assert daemon.token not in file.read_text() + daemon.log_file.read_text()


def test_audit_log_without_file(make_daemon):
    daemon = make_daemon().start()
    daemon.call("POST", "/api/v1/cache/prune")
    (line,) = until(lambda: [json.loads(event) for event in _logged(daemon) if event.startswith('{"at"')])
    assert (line["status"], line["principal"]) == (403, "client")
    assert daemon.stop() == 0


def _logged(daemon):
    return [json.loads(line)["event"] for line in daemon.log_file.read_text().splitlines() if line.startswith("{")]


def test_start_with_unwritable_audit_log(make_daemon):
    daemon = make_daemon(audit={"file": "/nonexistent/audit.log"})
    daemon.launch()
    status, said = daemon.ended()
    assert status == 1
    assert "the audit log /nonexistent/audit.log cannot be written: No such file or directory" in said


def test_token_key_must_be_private(make_daemon):
    daemon = make_daemon().start()
    key = daemon.folder / "state" / "tokens.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert daemon.stop() == 0
    key.chmod(0o644)
    daemon.launch()
    status, said = daemon.ended()
    assert status == 1
    assert "others can read the token key" in said


def test_token_changes_apply_at_once(make_daemon):
    daemon = make_daemon().start()
    config = str(daemon.folder / "config.toml")
    token = daemon.lvp("token", "create", "ci", "--volumes", "ci-*", "--config", config).out.strip()

    def ask(shown):
        headers = {"X-API-Token": shown}
        return httpx.get(f"{daemon.url}/api/v1/jobs", headers=headers, trust_env=False, timeout=TIMEOUT).status_code

    assert ask(token) == 200
    assert "ci" in daemon.lvp("token", "rotate-key", "--config", config).out
    assert ask(token) == 200
    assert ask(daemon.token) == 200
    assert daemon.lvp("token", "revoke", "ci", "--config", config).status == 0
    assert ask(token) == 401
    assert daemon.stop() == 0
    (record,) = TokenFile(daemon.folder / "state" / "tokens.json").list()
    assert record.last_used_at is not None
    assert len((daemon.folder / "state" / "tokens.key").read_text().split()) == 1  # it has moved


def test_server_certificate_replaced(make_daemon, tmp_path):
    """Without a signal, open connections stay open and new ones get the new certificate."""
    old, new = trustme.CA(), trustme.CA()
    file = tmp_path / "server.pem"
    old.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
    tls = {"tls_certificate": str(file), "tls_key": str(file), "warn_before_expiry": "400000d"}
    daemon = make_daemon(server={"bind": ["127.0.0.1:0"], **tls}).start()

    def trusting(*cas):
        context = ssl.create_default_context()
        for ca in cas:
            ca.configure_trust(context)
        return context

    def meets(ca):
        try:
            answer = httpx.get(f"{daemon.url}/health", verify=trusting(ca), trust_env=False, timeout=TIMEOUT)
        except httpx.ConnectError:
            return None
        return answer

    warning = meets(old).json()["warnings"]
    assert warning[0].startswith("the server's certificate expires on ")
    text = httpx.get(f"{daemon.url}/metrics", verify=trusting(old), trust_env=False, timeout=TIMEOUT).text
    assert 'libvirt_volume_provisioner_certificate_expiry_timestamp_seconds{certificate="server"}' in text
    with httpx.Client(base_url=daemon.url, verify=trusting(old), trust_env=False, timeout=TIMEOUT) as standing:
        assert standing.get("/health").status_code == 200
        fresh = tmp_path / "fresh.pem"
        new.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(fresh)
        fresh.rename(file)
        until(lambda: standing.get("/health").status_code == 200 and meets(new))
        assert meets(old) is None
        assert standing.get("/health").status_code == 200
    assert daemon.stop() == 0
    assert daemon.event("TLS files changed; new connections use them")


def test_client_ca_removed(make_daemon, tmp_path):
    """Connections with client certificates are closed; connections without one stay open."""
    server, staying, going = trustme.CA(), trustme.CA(), trustme.CA()
    file, authorities = tmp_path / "server.pem", tmp_path / "authorities.pem"
    server.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
    authorities.write_bytes(staying.cert_pem.bytes() + going.cert_pem.bytes())
    tls = {"tls_certificate": str(file), "tls_key": str(file), "client_ca": str(authorities)}
    auth = {"certificate_roles": {"*": "viewer"}}
    daemon = make_daemon(server={"bind": ["127.0.0.1:0"], **tls}, auth=auth).start()

    def connected(authority=None):
        context = ssl.create_default_context()
        server.configure_trust(context)
        if authority is not None:
            authority.issue_cert("client", common_name="client").configure_cert(context)
        host, port = daemon.url.removeprefix("https://").split(":")
        return http.client.HTTPSConnection(host, int(port), context=context, timeout=TIMEOUT)

    def status(connection, path="/api/v1/jobs"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def is_cut(connection):
        try:
            status(connection)
        except (OSError, http.client.HTTPException):
            return True
        return False

    stranger, old, kept = connected(), connected(going), connected(staying)
    try:
        assert [status(old), status(kept), status(stranger, "/health")] == [200, 200, 200]
        fresh = tmp_path / "fresh.pem"
        fresh.write_bytes(staying.cert_pem.bytes())
        fresh.rename(authorities)
        until(lambda: status(stranger, "/health") == 200 and is_cut(old))
        assert is_cut(kept)  # the daemon does not know which CA signed its certificate
        kept.close()
        assert status(kept) == 200  # a new connection works
        assert status(stranger, "/health") == 200
    finally:
        for connection in (stranger, old, kept):
            connection.close()
    assert daemon.stop() == 0
    assert daemon.event("a client authority was removed, its open connections closed")["count"] == 2


@pytest.mark.parametrize(("audit", "lines"), [({}, 0), ({"log": True}, 1)])
def test_audit_lines_in_a_text_log(make_daemon, audit, lines):
    """A text log is for people: it has audit lines only if asked for."""
    daemon = make_daemon(log={"format": "text"}, audit=audit)
    daemon.launch()
    log = daemon.log_file
    url = until(lambda: (found := re.search(r"http://[0-9.:]+", log.read_text())) and found[0])
    done = subprocess.run(
        [*LVP, "job", "list", "--url", url, "--token", "lvp_wrong"],
        capture_output=True, env=daemon.environment, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert daemon.stop() == 0
    assert log.read_text().count('"event":"request"') == lines
    assert ("no audit log is kept" in log.read_text()) == (lines == 0)
