"""Tests of the targets, the sources and the caller as the API shows them."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import trio

from provisioner.auth.authenticator import Authenticator
from provisioner.config import AuthSettings
from provisioner.config.access import Limits
from provisioner.contracts import Capacity, ImageUrl
from provisioner.contracts.errors import RemoteUnavailableError, TargetUnavailableError
from provisioner.contracts.testing import FakeTarget
from provisioner.observe.source_health import SourceHealth
from provisioner.tls.peer_certificate import PeerCertificate
from tests.provisioner.api.conftest import URL, job, running
from tests.provisioner.api.document import held


class Pool(FakeTarget):
    """A target on a thin pool."""

    async def capacity(self):
        return Capacity(100, 40, 60.5, 3.0)


async def targets(service):
    body = await held(await service.call("GET", "/api/v1/targets", role="viewer"), "TargetList")
    return {one["name"]: one for one in body["targets"]}


async def test_targets(folder):
    async with running(folder, more_targets=[Pool(folder / "pool", name="pool")]) as service:
        found = await targets(service)
    assert list(found) == ["fake", "pool"]
    fake = found["fake"]
    assert (fake["plugin"], fake["default"], fake["healthy"]) == ("file", True, True)
    assert fake["size_bytes"] >= fake["free_bytes"] > 0
    assert "thin_pool" not in fake
    assert "reason" not in fake
    assert found["pool"] == {
        "name": "pool", "plugin": "thin-lvm", "default": False, "healthy": True, "size_bytes": 100, "free_bytes": 40,
        "thin_pool": {"data_percent": 60.5, "metadata_percent": 3.0},
    }  # fmt: skip


async def test_target_that_fails(folder):
    """Its reason stands in its own entry; the others are whole."""
    async with running(folder, more_targets=[FakeTarget(folder / "other", name="other")]) as service:
        service.target.steps.fail_at["capacity"] = TargetUnavailableError("volume group vg0 does not exist")
        found = await targets(service)
    assert found["fake"]["healthy"] is False
    assert found["fake"]["reason"] == "volume group vg0 does not exist"
    assert "size_bytes" not in found["fake"]
    assert found["other"]["healthy"]


async def test_target_that_hangs(folder):
    async with running(folder) as service:
        service.target.steps.hang_at = "capacity"
        with trio.fail_after(60):
            found = await targets(service)
    assert found["fake"]["healthy"] is False
    assert "no answer" in found["fake"]["reason"]


async def sources(service):
    return (await held(await service.call("GET", "/api/v1/sources", role="viewer"), "SourceList"))["sources"]


async def test_sources(service):
    """Prefixes come without secrets; the health is that of the last requests of jobs."""
    service.source.prefixes = lambda: ["https://user:secret@images.example/?token=secret"]
    watched = SourceHealth(service.source)
    service.services.back_ends.sources["http"] = watched
    shown = {"name": "http", "plugin": "http", "urls": ["https://...@images.example/"], "healthy": True}
    assert await sources(service) == [shown]
    service.source.steps.fail_at["stat"] = RemoteUnavailableError("it is down")
    with suppress(RemoteUnavailableError):
        await watched.stat(ImageUrl.parse(URL))
    (broken,) = await sources(service)
    assert broken["healthy"] is False
    assert "did not answer once" in broken["reason"]


async def whoami(service, **more):
    return await held(await service.call("GET", "/api/v1/whoami", **more), "Principal")


async def test_whoami_with_token(idle):
    assert await whoami(idle, role="viewer") == {
        "principal": "token:viewer", "name": "viewer", "role": "viewer", "via": "token", "limits": {}
    }  # fmt: skip
    end = int(time.time()) + 3600
    limits = Limits(volumes=["ci-*"], targets=["fake"], sources=["http"], max_jobs=4)
    token = idle.tokens.create("ci", "operator", end, limits)
    body = await whoami(idle, role=None, headers={"X-API-Token": token})
    assert body["limits"] == {"volumes": ["ci-*"], "targets": ["fake"], "sources": ["http"], "max_jobs": 4}
    assert body["expires_at"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))
    job_id = (await (await idle.submit(job("ci-1"), role=None, headers={"X-API-Token": token})).get_json())["job_id"]
    shown = await (await idle.call("GET", f"/api/v1/jobs/{job_id}")).get_json()
    assert shown["submitted_by"] == body["principal"] == "token:ci"


def test_certificate_expiry_of_principal():
    end = (datetime.now(UTC) + timedelta(days=1)).timestamp()
    known = Authenticator(AuthSettings(certificate_roles={"ci": "viewer"}), None)
    for name in ("ci", "unlisted"):
        assert known.identify(PeerCertificate((name,), not_after=end), {}).expires_at == end
        assert known.identify(PeerCertificate((name,)), {}).expires_at is None
