"""Tests of the bytes and times that a job shows while it runs and afterwards."""

from __future__ import annotations

import time

import msgspec
import pytest

from provisioner.contracts.testing import FakeCloneTarget
from provisioner.jobs import record
from tests.provisioner.api.conftest import IMAGE, URL, job, running
from tests.provisioner.api.document import held

DONE = {"stage": "finalizing", "percent": 100, "eta_sec": 0}


def whole(size):
    return {**DONE, "bytes_processed": size, "bytes_total": size}


async def test_completed_copy_keeps_bytes(service):
    made = await service.done()
    assert made["progress"] == whole(len(IMAGE))
    listed = await held(await service.call("GET", "/api/v1/jobs"), "JobList")
    assert listed["jobs"][0]["progress"] == whole(len(IMAGE))


async def test_completed_fetch_keeps_bytes(service):
    accepted = await service.call("POST", "/api/v1/cache/fetch", json={"image_url": URL, "image_type": "raw"})
    made = await service.ended((await accepted.get_json())["job_id"])
    assert made["progress"] == whole(len(IMAGE))


async def test_completed_clone_keeps_bytes(folder):
    async with running(folder, more_targets=[FakeCloneTarget(folder / "pool", name="pool")]) as service:
        for name in ("first", "second"):
            made = await service.done(job(name, target="pool"))
            assert made["volume"]["provisioned_by"] == "clone"
            assert made["progress"] == whole(len(IMAGE))


async def test_job_stored_before_shows_volume_size(service):
    """A job that an older version stored has no bytes of its own."""
    store = service.services.store
    stored = await store.get((await service.done())["job_id"])
    old = msgspec.json.decode(record.encode(stored))
    for name in {"bytes_total", "request"} & old.keys():
        del old[name]
    await store.put(record.decode(msgspec.json.encode(old)))
    body = await held(await service.call("GET", f"/api/v1/jobs/{stored.job_id}"), "Job")
    assert body["progress"] == whole(2**30)


@pytest.mark.parametrize("path", ["/api/v1/jobs/{}", "/api/v1/jobs"])
async def test_updated_at_moves_with_progress(service, monkeypatch, path):
    """The store holds what it held at the start: the progress moves in memory alone."""
    service.source.steps.hang_at, service.source.at_byte = "byte", len(IMAGE) // 2
    job_id = (await (await service.submit()).get_json())["job_id"]
    await service.source.steps.reached.wait()
    active = service.services.supervisor._workers.active[job_id]
    stored = await service.services.store.get(job_id)
    active.progress.wall_clock = lambda: stored.updated_at + 3600
    active.progress._probed = None  # the bytes moved
    monkeypatch.setattr(service.services.store, "put", None)
    body = await (await service.call("GET", path.format(job_id))).get_json()
    shown = body["jobs"][0] if "jobs" in body else body
    assert shown["updated_at"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(stored.updated_at) + 3600))
    monkeypatch.undo()
    assert (await service.services.store.get(job_id)).updated_at == stored.updated_at
    await service.call("POST", f"/api/v1/jobs/{job_id}/cancel")
