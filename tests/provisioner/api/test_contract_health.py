"""Tests of /health, /readyz and /metrics."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial

import pytest
import trio

from provisioner.api.app import create_app
from provisioner.config import AuthSettings, ServerSettings
from provisioner.contracts import SecretRef
from provisioner.contracts.errors import RemoteUnavailableError, TargetUnavailableError, UnavailableError
from provisioner.contracts.testing import FakeTarget
from provisioner.observe.source_health import SourceHealth
from tests.provisioner.api.conftest import URL, job, running
from tests.provisioner.api.document import held, refused

pytestmark = pytest.mark.slow  # real seconds


@pytest.mark.parametrize("path", ["/health", "/healthz", "/livez"])
async def test_health(idle, path):
    body = await held(await idle.call("GET", path, role=None), "Health")
    assert body.keys() == {"status", "timestamp", "version", "uptime"}
    for number, status in enumerate(["healthy", "healthy", "degraded"]):
        await idle.submit(job(f"v{number}"))
        assert (await held(await idle.call("GET", path, role=None), "Health"))["status"] == status


async def test_health_warning_keeps_status(service):
    warning = "the server's certificate expires on 2024-01-20, in 5 days"
    service.services.warnings = lambda: [warning]
    body = await held(await service.call("GET", "/health", role=None), "Health")
    assert (body["status"], body["warnings"]) == (
        "healthy",
        ["the server's certificate expires on 2024-01-20, in 5 days"],
    )
    service.services.warnings = list
    assert "warnings" not in await held(await service.call("GET", "/health", role=None), "Health")


async def test_too_many_failures(service):
    for _ in range(20):
        await service.call("GET", "/api/v1/jobs", role=None, headers={"X-API-Token": "wrong"})
    response = await service.call("GET", "/api/v1/jobs", role=None, headers={"X-API-Token": "wrong"})
    await refused(response, 429, "too many requests", "failed authentications")
    assert 1 <= int(response.headers["Retry-After"]) <= 60


async def test_health_configured_degraded_above(folder):
    async with running(folder, work=False, server=ServerSettings(degraded_above=0)) as service:
        await service.submit()
        assert (await held(await service.call("GET", "/health", role=None), "Health"))["status"] == "degraded"


async def test_ready(service):
    assert await held(await service.call("GET", "/readyz", role=None), "Ready") == {"status": "ready"}


async def test_readyz_reasons(service):
    service.target.steps.fail_at["capacity"] = TargetUnavailableError("volume group vg0 does not exist")
    body = await held(await service.call("GET", "/readyz", role=None), "NotReady", 503)
    assert body["reasons"] == ["target 'fake': volume group vg0 does not exist"]
    assert (await service.call("GET", "/metrics", role=None)).status_code == 200


async def test_readyz_target_check_raises(service):
    service.target.steps.fail_at["capacity"] = RuntimeError("a bug of a back end")
    await held(await service.call("GET", "/readyz", role=None), "NotReady", 503)
    assert (await service.call("GET", "/metrics", role=None)).status_code == 200


async def test_hung_target_keeps_others_visible(folder):
    """If one of two targets hangs, it is reported, and the other is still shown."""
    other = FakeTarget(folder / "other", name="other", total_bytes=7)
    async with running(folder, more_targets=[other]) as service:
        await service.done(job("web-01", target="other"))
        service.target.steps.hang_at = "capacity"
        with trio.fail_after(30):
            body = await held(await service.call("GET", "/readyz", role=None), "NotReady", 503)
            metrics = await (await service.call("GET", "/metrics", role=None)).get_data(as_text=True)
        (reason,) = body["reasons"]
        assert reason.startswith("target 'fake': no answer for ")
        assert 'target_size_bytes{target="other"} 7.0' in metrics
        assert service.target.steps.log.count("capacity") - service.target.steps.log.count("placement") <= 1


async def test_hung_target_keeps_volumes_visible(folder, monkeypatch):
    monkeypatch.setattr("provisioner.api.volume_listing._LIMIT", 0.2)
    other = FakeTarget(folder / "other", name="other")
    async with running(folder, more_targets=[other]) as service:
        await service.done(job("web-01", target="other"))
        service.target.steps.hang_at = "list"
        for _ in range(3):
            body = await held(await service.call("GET", "/api/v1/volumes"), "VolumeList")
            assert [volume["name"] for volume in body["volumes"]] == ["web-01"]
            assert body["unavailable"]["fake"].startswith("target 'fake': no answer for ")
        assert service.target.steps.log.count("list") == 1
        other.steps.fail_at["list"] = TargetUnavailableError("gone")
        await refused(await service.call("GET", "/api/v1/volumes"), 503, "service unavailable", "target 'fake'")


@pytest.mark.parametrize("where", ["state", "state/cache"])
@pytest.mark.parametrize("fault", ["frozen", "full"])
async def test_readyz_frozen_disk(folder, monkeypatch, where, fault):
    """A hung disk is probed once, by one thread, and delays neither other responses nor the shutdown."""
    gate, asked = threading.Event(), []

    def probe(path):
        if path == folder / where:
            asked.append(path)
            if fault == "full":
                raise OSError(28, "No space left on device")
            gate.wait()

    monkeypatch.setattr("provisioner.api.readiness.write_probe", probe)
    try:
        async with running(folder) as service:
            with trio.fail_after(30):
                for _ in range(3):
                    body = await held(await service.call("GET", "/readyz", role=None), "NotReady", 503)
                    assert (await service.call("GET", "/metrics", role=None)).status_code == 200
            (reason,) = body["reasons"]
    finally:
        gate.set()
    what = "cache directory" if "cache" in where else "state directory"
    if fault == "full":
        assert reason == f"{what} {folder / where} cannot be written: No space left on device"
    else:
        assert reason.startswith(f"{'cache' if 'cache' in where else 'job store'}: no answer for ")
    assert len(asked) == 1


async def test_readyz_warns_of_secrets(folder, monkeypatch):
    """A secret that is gone stops jobs, not the service; neither it nor its place is shown to anyone who asks."""
    secret = folder / "hunter2"
    secret.write_text("right")
    async with running(folder, auth=AuthSettings(token_key=SecretRef("env:NO_SUCH_KEY"))) as service:
        service.services.back_ends.secrets = {"sources.web.password": SecretRef(f"file:{secret}")}
        app = create_app(service.services)
        with monkeypatch.context() as patched:
            patched.setenv("NO_SUCH_KEY", "ab" * 32)
            body = await (await app.test_client().get("/readyz")).get_json()
            assert body == {"status": "ready"}
        secret.unlink()
        monkeypatch.setattr("provisioner.api.readiness.SECRETS_FRESH", 0.0)
        body = await held(await app.test_client().get("/readyz"), "Ready")
        assert body["warnings"] == [
            "the secret auth.token_key cannot be read; run lvp doctor on the host",
            "the secret sources.web.password cannot be read; run lvp doctor on the host",
        ]


async def test_readyz_warns_of_a_secret_that_hangs(folder, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr("provisioner.api.readiness.check_secret", lambda reference: gate.wait())
    try:
        async with running(folder) as service:
            service.services.back_ends.secrets = {"sources.web.password": SecretRef("file:/x")}
            with trio.fail_after(30):
                response = await create_app(service.services).test_client().get("/readyz")
                (warning,) = (await held(response, "Ready"))["warnings"]
    finally:
        gate.set()
    assert warning.startswith("the secret sources.web.password: no answer for ")


async def test_readyz_warns_of_sources(service):
    watched = SourceHealth(service.source)
    service.services.back_ends.sources = {"http": watched}
    with suppress(RemoteUnavailableError), watched._judged():
        raise RemoteUnavailableError(f"{URL} stalled")
    (warning,) = (await held(await service.call("GET", "/readyz", role=None), "Ready"))["warnings"]
    assert warning == "source 'http': its server did not answer once, last 0 s ago; see the log"
    assert (await service.done())["status"] == "completed"
    assert await held(await service.call("GET", "/readyz", role=None), "Ready") == {"status": "ready"}


async def test_metrics_are_rendered_once_a_second(service, monkeypatch):
    rendered = []
    real = service.services.metrics.render
    monkeypatch.setattr(service.services.metrics, "render", lambda _type: rendered.append(1) or real())
    monkeypatch.setattr("provisioner.api.health.PAGE_KEPT", 3600.0)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(partial(service.call, "GET", "/metrics", role=None))
    assert len(rendered) == 1


async def test_health_audit_log_hangs(service):
    """The service keeps working and shows a warning."""
    service.services.auditor.warnings = lambda: ["the audit log /x has accepted nothing for 9 s"]
    for path, schema in (("/readyz", "Ready"), ("/health", "Health")):
        body = await held(await service.call("GET", path, role=None), schema)
        assert body["warnings"] == ["the audit log /x has accepted nothing for 9 s"]


async def test_readyz_job_end_not_stored(service, monkeypatch):
    """The job stays active, its cancel is rejected, and /readyz gives the reason."""
    store = service.services.store
    put = store.put

    async def full(job):
        if not job.status.ended:
            return await put(job)
        raise UnavailableError("the job store cannot be used: database or disk is full")

    monkeypatch.setattr(store, "put", full)
    monkeypatch.setattr("provisioner.jobs.workers._STORE_TIMEOUT", 0.01)
    job_id = (await (await service.submit()).get_json())["job_id"]
    while service.services.supervisor.unstored() is None:
        await trio.lowlevel.checkpoint()
    body = await held(await service.call("GET", "/readyz", role=None), "NotReady", 503)
    assert body["reasons"] == [
        f"the end of job {job_id} could not be stored yet: the job store cannot be used: database or disk is full"
    ]
    assert (await (await service.call("GET", f"/api/v1/jobs/{job_id}")).get_json())["status"] == "running"
    response = await service.call("POST", f"/api/v1/jobs/{job_id}/cancel")
    await refused(response, 503, "service unavailable", "the job has stopped, but the end of job")
    monkeypatch.setattr(store, "put", put)
    assert (await service.ended(job_id))["status"] == "completed"
    assert await held(await service.call("GET", "/readyz", role=None), "Ready") == {"status": "ready"}
