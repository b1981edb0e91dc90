"""Tests of signing in with a client certificate in a real Chromium: what its user may do, another site may not."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.end_to_end.chromium import chromium
from tests.end_to_end.daemon import LVP, until
from tests.end_to_end.test_page import foreign, open_view  # noqa: F401 - one is a fixture

pytestmark = pytest.mark.slow

# The policy is a file in the system's folder: here a folder that only this browser sees.
POLICY = """
mount -t tmpfs tmpfs /etc/chromium && mkdir -p /etc/chromium/policies/managed &&
printf %s "$1" >/etc/chromium/policies/managed/certificate.json && shift && exec "$@"
"""
CHOOSE = json.dumps({"AutoSelectCertificateForUrls": [json.dumps({"pattern": "https://127.0.0.1", "filter": {}})]})


def run(*command):
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


@pytest.fixture
def secured(make_daemon, tmp_path):
    """A daemon with mutual TLS, and the certificate of an admin, made with ``lvp pki``."""
    pki, audit = tmp_path / "pki", tmp_path / "audit.log"
    for words in (["init"], ["server", "127.0.0.1"], ["client", "alice", "--role", "admin"]):
        run(*LVP, "pki", *words, "--dir", pki)
    server = {
        "tls_certificate": str(pki / "servers" / "127.0.0.1.pem"),
        "tls_key": str(pki / "servers" / "127.0.0.1.key"),
        "client_ca": str(pki / "ca.pem"),
    }
    auth = {"certificates": {"alice": {"role": "admin"}}}
    daemon = make_daemon(server=server, auth=auth, audit={"file": str(audit)}).start()
    daemon.pki, daemon.audit = pki, audit
    return daemon


@pytest.fixture
def page(secured, tmp_path):
    """A page of a browser that has the certificate in its own store, imported as docs/page.md says."""
    profile, pki = tmp_path / "profile", secured.pki
    store = profile / ".pki" / "nssdb"
    store.mkdir(parents=True)
    p12, alice = tmp_path / "alice.p12", pki / "clients" / "alice"
    run(
        "openssl",
        "pkcs12",
        "-export",
        "-in",
        f"{alice}.pem",
        "-inkey",
        f"{alice}.key",
        "-out",
        p12,
        "-passout",
        "pass:",
    )
    run("certutil", "-d", f"sql:{store}", "-N", "--empty-password")
    run("pk12util", "-d", f"sql:{store}", "-i", p12, "-W", "")
    run("certutil", "-d", f"sql:{store}", "-A", "-n", "ca", "-t", "C,,", "-i", pki / "ca.pem")
    before = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", POLICY, "sh", CHOOSE)
    with chromium(profile, before=before) as browser:
        yield browser.open()


def audited(daemon, **wanted):
    lines = daemon.audit.read_text().splitlines() if daemon.audit.exists() else []
    return [one for one in map(json.loads, lines) if wanted.items() <= one.items()]


def test_signs_in_without_a_token(page, secured):
    page.goto(secured.url + "/")
    page.find("button", "Sign out")
    page.see("alice admin")
    open_view(page, "Cache")
    page.click("Prune")
    page.click("Prune the cache")
    until(lambda: audited(secured, endpoint="/api/v1/cache/prune", status=200))
    headers = [event["params"]["request"]["headers"] for event in page.events("Network.requestWillBeSent")]
    assert not [one for one in headers if {"x-api-token", "authorization"} & {name.lower() for name in one}]
    assert page.complaints() == []


def test_another_site_cannot_use_it(page, secured, foreign):  # noqa: F811 - a fixture
    """The browser adds the certificate to requests of another site's page; the service refuses their changes."""
    page.goto(secured.url + "/")
    page.see("alice admin")
    prune = secured.url + "/api/v1/cache/prune"
    page.goto(foreign)
    page.js(
        f"fetch('{prune}', {{method: 'POST', mode: 'no-cors', credentials: 'include', body: '{{}}'}}).then(() => 1)"
    )
    until(lambda: len(audited(secured, endpoint="/api/v1/cache/prune", status=403)) == 1)
    page.js(
        "(() => { const form = document.createElement('form'); form.method = 'post';"
        f" form.action = '{prune}'; document.body.append(form); form.submit(); }})()"
    )
    until(lambda: len(audited(secured, endpoint="/api/v1/cache/prune", status=403)) == 2)
    page.see("the request comes from a page on another site")
    requests = audited(secured, endpoint="/api/v1/cache/prune")
    assert {(one["via"], one["role"]) for one in requests} == {("certificate", "admin")}, "it came with the certificate"
    assert not audited(secured, endpoint="/api/v1/cache/prune", status=200)
