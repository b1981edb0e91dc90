"""Tests of every route for every role and every kind of credential, over real HTTP/1.1 and HTTP/2 connections."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography.hazmat.primitives import hashes

from provisioner.auth.throttle import FailureCounter
from provisioner.config import AuthSettings
from tests.provisioner.api.events_client import Stream
from tests.provisioner.auth.test_roles import RANK, calls
from tests.provisioner.tls.test_peer_certificate import ROLES, parsed, tls_harness

pytestmark = pytest.mark.slow  # real TLS connections for every route and role

NOW = datetime.now(UTC)


@pytest.fixture
async def tls(tmp_path):
    async with tls_harness(tmp_path) as made:
        made.service.services.auditor._failures = FailureCounter(max_failures=10**6)  # limits are tested elsewhere
        yield made


@pytest.fixture(params=[False, True], ids=["HTTP/1.1", "HTTP/2"])
def http2(request):
    return request.param


async def statuses(client, app):
    """Request every route; return (method, path, least role) -> status."""
    return {call: (await client.request(call[0], call[1])).status_code for call in calls(app)}


@pytest.mark.parametrize("way", ["certificate", "token", "both"])
async def test_every_route_for_every_role(tls, http2, way):
    tls.service.services.notifier.feed.close()  # event streams end at once
    for role in RANK:
        certificate = None if way == "token" else tls.ca.issue_cert(f"{role}.example")
        headers = {} if way == "certificate" else {"X-API-Token": tls.service.token[role]}
        async with tls.client(certificate, http2=http2, headers=headers) as client:
            for (_, path, least), status in (await statuses(client, tls.service.app)).items():
                if RANK.index(role) < RANK.index(least):
                    assert status == 403, (path, role)
                else:
                    assert status not in {401, 403, 429}, (path, role)


async def test_certificate_wins_over_token(tls, http2):
    headers = {"X-API-Token": tls.service.token["admin"]}
    async with tls.client(tls.ca.issue_cert("viewer.example"), http2=http2, headers=headers) as client:
        assert (await client.post("/api/v1/cache/prune")).status_code == 403


async def test_certificate_with_invalid_token(tls, http2):
    headers = {"X-API-Token": "lvp_wrong"}
    assert (await tls.get(tls.ca.issue_cert("viewer.example"), http2=http2, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "way", ["neither", "wrong", "expired", "revoked", "unknown certificate", "wrong beside unknown"]
)
async def test_routes_without_valid_credential(tls, http2, way):
    tokens = tls.service.tokens
    shown = {
        "wrong": lambda: "lvp_" + "x" * 43,
        "expired": lambda: tokens.create("old", "admin", time.time() - 1),
        "revoked": lambda: (tokens.create("gone", "admin"), tokens.revoke("gone"))[0],
        "wrong beside unknown": lambda: "lvp_" + "x" * 43,
    }
    headers = {"X-API-Token": shown[way]()} if way in shown else {}
    certificate = tls.ca.issue_cert("unknown.example") if "unknown" in way else None
    async with tls.client(certificate, http2=http2, headers=headers) as client:
        assert set((await statuses(client, tls.service.app)).values()) == {401}


@pytest.mark.parametrize("way", ["stranger's", "expired", "not yet valid"])
async def test_invalid_certificate_is_refused(tls, http2, way):
    """Not even with an admin's token."""
    certificate = {
        "stranger's": lambda: tls.stranger.issue_cert("admin.example"),
        "expired": lambda: tls.ca.issue_cert(
            "admin.example", not_before=NOW - timedelta(9), not_after=NOW - timedelta(1)
        ),
        "not yet valid": lambda: tls.ca.issue_cert(
            "admin.example", not_before=NOW + timedelta(1), not_after=NOW + timedelta(9)
        ),
    }[way]()
    async with tls.client(certificate, http2=http2, headers={"X-API-Token": tls.service.token["admin"]}) as client:
        for method, path, _ in calls(tls.service.app):
            with pytest.raises(httpx.TransportError):
                await client.request(method, path)


@pytest.mark.parametrize("kind", ["serial", "sha256"])
async def test_revoked_certificate_gets_401(tls, http2, kind):
    """By serial number or fingerprint, as openssl prints them; also with a valid token and on open connections."""
    issued = tls.ca.issue_cert("admin.example")
    certificate = parsed(issued)
    entry = {
        "serial": f"serial:{certificate.serial_number:X}",
        "sha256": "sha256:" + certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
    }[kind]
    headers = {"X-API-Token": tls.service.token["admin"]}
    async with tls.client(issued, http2=http2, headers=headers) as client:
        assert (await client.get("/api/v1/jobs")).status_code == 200
        tls.service.services.authenticator.use(AuthSettings(certificate_roles=ROLES, revoked_certificates=[entry]))
        assert set((await statuses(client, tls.service.app)).values()) == {401}
        assert "revoked" in (await client.get("/api/v1/jobs")).json()["message"]
        assert (await client.get("/health")).status_code == 200
    assert (await tls.get(tls.ca.issue_cert("admin.example"), http2=http2)).status_code == 200


async def test_certificate_on_revocation_list(tls, http2):
    good, bad = tls.ca.issue_cert("viewer.example"), tls.ca.issue_cert("viewer.example")
    tls.write_crl()
    tls.reread(client_crl=tls.crl)
    async with tls.client(bad, http2=http2) as client:
        assert (await client.get("/api/v1/jobs")).status_code == 200
        tls.write_crl(bad)
        tls.reread(client_crl=tls.crl)
        assert set((await statuses(client, tls.service.app)).values()) == {401}
    await tls.refused(bad, http2=http2)
    await tls.refused(bad, http2=http2, headers={"X-API-Token": tls.service.token["admin"]})
    assert (await tls.get(good, http2=http2)).status_code == 200
    assert (await tls.get(http2=http2, headers={"X-API-Token": tls.service.token["admin"]})).status_code == 200


async def test_expired_revocation_list(tls):
    certificate = tls.ca.issue_cert("viewer.example")
    tls.write_crl(ends=NOW - timedelta(minutes=1))
    tls.reread(client_crl=tls.crl)
    await tls.refused(certificate)
    assert (await tls.get(headers={"X-API-Token": tls.service.token["admin"]})).status_code == 200


@pytest.mark.parametrize("token", [False, True])
async def test_open_connection_when_list_expires(tls, http2, token):
    """It is rejected as a new connection would be, also with a token."""
    tls.write_crl()
    tls.reread(client_crl=tls.crl)
    headers = {"X-API-Token": tls.service.token["admin"]} if token else {}
    async with tls.client(tls.ca.issue_cert("viewer.example"), http2=http2, headers=headers) as client:
        assert (await client.get("/api/v1/jobs")).status_code == 200
        lists = [replace(one, next_update=NOW.timestamp() - 1) for one in tls.listener.tls.tls_files.lists]
        tls.service.services.authenticator.use_lists(lists)  # as if the list had expired
        assert set((await statuses(client, tls.service.app)).values()) == {401}
        assert "revocation list" in (await client.get("/api/v1/jobs")).json()["message"]
        tls.service.services.authenticator.use_lists(tls.listener.tls.tls_files.lists)
        assert (await client.get("/api/v1/jobs")).status_code == 200


async def test_revocation_list_of_other_authority(tls):
    tls.write_crl(of=tls.stranger)
    tls.reread(client_crl=tls.crl)
    await tls.refused(tls.ca.issue_cert("viewer.example"))


async def test_refused_handshakes_are_counted(tls):
    await tls.refused(tls.stranger.issue_cert("admin.example"))
    text = (await tls.get(path="/metrics")).text
    assert 'libvirt_volume_provisioner_authentication_failures_total{presented="certificate"} 1.0' in text


async def test_certificate_names(tls):
    settings = AuthSettings(
        certificate_roles={"the subject": "admin", "alt.example": "viewer", "a@alt.example": "operator",
                           "192.0.2.7": "operator"},
        default_certificate_role="none",
    )  # fmt: skip
    tls.service.services.authenticator.use(settings)
    for certificate, status in [
        (tls.ca.issue_cert("x.example", common_name="the subject"), 200),
        (tls.ca.issue_cert("x.example", "alt.example"), 403),
        (tls.ca.issue_cert("a@alt.example"), 403),
        (tls.ca.issue_cert("192.0.2.7"), 403),
        (tls.ca.issue_cert("x.example"), 401),
    ]:
        async with tls.client(certificate) as client:
            assert (await client.post("/api/v1/cache/prune")).status_code == status


async def test_tls_1_2_only_if_allowed(tls, tmp_path):
    version = ssl.TLSVersion.TLSv1_2
    await tls.refused(tls.ca.issue_cert("viewer.example"), version=version)
    tls.reread(tls_minimum="1.2")
    assert (await tls.get(tls.ca.issue_cert("viewer.example"), version=version)).status_code == 200


async def stream_until_refused(tls, issued, http2, refuse):
    """Open an event stream with the certificate, call ``refuse`` and return the data of the stream's end."""
    async with (
        tls.client(issued, http2=http2) as client,
        client.stream("GET", "/api/v1/events") as response,
    ):
        assert response.status_code == 200
        events = Stream(response)
        assert (await events.next()).kind == "snapshot"
        refuse()
        tls.service.services.notifier.feed.publish("volume.removed", {})
        (end,) = await events.rest()
    assert end.data["reason"] == "access lost"
    return end.data["message"]


async def test_certificate_on_revocation_list_ends_the_stream(tls, http2):
    bad = tls.ca.issue_cert("viewer.example")
    tls.write_crl()
    tls.reread(client_crl=tls.crl)

    def refuse():
        tls.write_crl(bad)
        tls.reread(client_crl=tls.crl)

    assert "revoked" in await stream_until_refused(tls, bad, http2, refuse)


async def test_expired_certificate_ends_the_stream(tls, http2, monkeypatch):
    def refuse():
        later = time.time() + 365 * 86400
        monkeypatch.setattr("provisioner.auth.authenticator.time.time", lambda: later)

    expires = NOW + timedelta(days=1)
    issued = tls.ca.issue_cert("viewer.example", not_after=expires)
    assert "expired" in await stream_until_refused(tls, issued, http2, refuse)


async def test_lost_role_ends_the_stream(tls, http2):
    def refuse():
        tls.service.services.authenticator.use(AuthSettings(default_certificate_role="none"))

    issued = tls.ca.issue_cert("viewer.example")
    assert "has no role" in await stream_until_refused(tls, issued, http2, refuse)
