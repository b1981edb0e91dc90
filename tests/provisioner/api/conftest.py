"""Fixtures: the real app over a real store, cache, supervisor and token file, with fake back ends."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from provisioner.api.app import create_app
from provisioner.api.services import Services
from provisioner.auth.audit_events import Auditor
from provisioner.auth.authenticator import Authenticator
from provisioner.auth.tokens import TokenFile
from provisioner.back_ends import BackEnds
from provisioner.cache import UPLOADS, ImageCache
from provisioner.config import AuthSettings, CacheSettings, Config, JobSettings, ServerSettings
from provisioner.contracts import ByteSize
from provisioner.contracts.testing import FakeConverter, FakeKeepingTarget, FakeSource
from provisioner.images import ImageResolver
from provisioner.jobs import JobStore, Supervisor
from provisioner.jobs.notify import Notifier
from provisioner.observe.audit import AuditLog
from provisioner.observe.metrics import Metrics
from provisioner.pipeline.pipeline import Pipeline

if TYPE_CHECKING:
    from pathlib import Path

    from quart import Response

IMAGE = bytes(range(256)) * 256
URL = "http://images.example/disk.raw"
ABSENT = "http://images.example/absent.raw"
DIGEST = hashlib.sha256(IMAGE).hexdigest()
SUMS = f"{DIGEST}  disk.raw\n".encode()


def job(name="web-01", **more):
    return {"image_url": URL, "volume_name": name, "volume_size_gb": 1, "image_type": "raw", **more}


@dataclass
class Service:
    """The app, a token for each role, and the fakes."""

    services: Services
    source: FakeSource
    converter: FakeConverter
    target: FakeKeepingTarget
    folder: Path
    tokens: TokenFile
    token: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.app = create_app(self.services)
        for role in ("viewer", "operator", "admin"):
            self.token[role] = self.tokens.create(role, role)

    async def call(self, method, path, *, role="admin", headers=None, **more) -> Response:
        """Send a request through the whole app; exceptions become responses as in production."""
        sent = {"X-API-Token": self.token[role]} if role else {}
        return await self.app.test_client().open(path, method=method, headers={**sent, **(headers or {})}, **more)

    async def submit(self, body=None, **more):
        return await self.call("POST", "/api/v1/jobs", json=body or job(), **more)

    async def upload(self, path, body, *, headers=None, **more):
        """Send a whole body, whose length is known."""
        return await self.call(
            "PUT", path, data=body, headers={"Content-Length": str(len(body)), **(headers or {})}, **more
        )

    async def ended(self, job_id, role="admin"):
        """Wait until the job has ended; return it."""
        with trio.fail_after(30):
            while True:
                body = await (await self.call("GET", f"/api/v1/jobs/{job_id}", role=role)).get_json()
                if body["status"] not in {"pending", "running"}:
                    return body
                await trio.sleep(0.005)  # clients of the API must poll

    async def done(self, body=None):
        """Submit a job and wait until it has ended; return it."""
        return await self.ended((await (await self.submit(body)).get_json())["job_id"])


@asynccontextmanager
async def running(
    folder: Path,
    *,
    auth=None,
    server=None,
    jobs=None,
    cache_size=2**30,
    work=True,
    audit=None,
    more_targets=(),
    prewarm=(),
    download_attempts=1,
    images=None,
    cache=None,
):
    """Run a service. Without ``work`` its jobs stay pending."""
    config = Config(
        state_directory=str(folder / "state"),
        auth=auth or AuthSettings(),
        server=server or ServerSettings(),
        jobs=jobs or JobSettings(),
        sources={"http": {"plugin": "http"}},
        targets={"fake": {"plugin": "file"}, **{one.name: {"plugin": "thin-lvm"} for one in more_targets}},
        cache=msgspec.structs.replace(
            cache or CacheSettings(),
            min_free=ByteSize(0),
            max_size=ByteSize(cache_size),
            download_attempts=download_attempts,
            prewarm=list(prewarm),
        ),
    )
    source = FakeSource({URL: IMAGE, f"{URL}.sha256": SUMS})
    converter, target = FakeConverter(), FakeKeepingTarget(folder / "volumes")
    back_ends = BackEnds(
        sources={"http": source},
        converters={"raw": converter, "qcow2": converter},
        targets={"fake": target, **{one.name: one for one in more_targets}},
        default_target="fake",
    )
    metrics = Metrics()
    store = JobStore(folder / "state" / "jobs.sqlite")
    notifier = Notifier({})
    cache = ImageCache(
        folder / "state" / "cache",
        config.cache,
        metrics.downloaded.inc,
        metrics.cache_evictions.inc,
        notifier.image_changed,
    )
    back_ends.sources = {**back_ends.sources, UPLOADS: cache.upload_source}
    audit_log = AuditLog(audit, metrics.audit_lost.inc)
    auditor = Auditor(audit_log, metrics, config.auth.max_failures)
    pipeline = Pipeline(back_ends, cache, True)
    supervisor = Supervisor(pipeline, store, config.jobs, metrics, notifier, auditor.job_ended)
    tokens = TokenFile(folder / "state" / "tokens.json")
    authenticator = Authenticator(config.auth, tokens)
    named = ImageResolver(images or {}, back_ends.source_for, lambda: [entry.url for entry in cache.entries()])
    services = Services(
        config, back_ends, cache, store, supervisor, notifier, metrics, authenticator, auditor, tokens, named
    )
    await store.open()
    opened = ExitStack()
    opened.enter_context(audit_log.open())
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(cache.run)
            await nursery.start(services.probes.run)
            nursery.start_soon(notifier.feed.run, supervisor.running)
            if work:
                await nursery.start(supervisor.run)
            yield Service(services, source, converter, target, folder, tokens)
            nursery.cancel_scope.cancel()
    finally:
        opened.close()
        await store.aclose()


@pytest.fixture
async def service(folder):
    async with running(folder) as made:
        yield made


@pytest.fixture
async def idle(folder):
    """Run a service whose jobs stay pending."""
    async with running(folder, work=False) as made:
        yield made
