"""Tests of POST /plan and POST /jobs?dry_run=true: the plan is right, and nothing is changed."""

from __future__ import annotations

import pytest

from provisioner.config import JobSettings
from provisioner.config.access import Limits
from provisioner.contracts import GIB, Placement
from provisioner.contracts.errors import RemoteUnavailableError, TargetUnavailableError
from provisioner.contracts.testing import FakeCloneTarget
from provisioner.pipeline import dry_run
from tests.contents import data_of
from tests.provisioner.api.conftest import ABSENT, DIGEST, IMAGE, URL, job, running
from tests.provisioner.api.document import held, refused

PATH = "/api/v1/plan"
QUERY = "/api/v1/jobs?dry_run=true"


async def planned(service, body=None, **more):
    return await held(await service.call("POST", PATH, json=body or job(), **more), "Plan")


def state(service):
    """What a dry run must not change: every file, the jobs, and the names that are held."""
    files = {
        path: (path.stat().st_size, data_of(path)) for path in sorted(service.folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }  # fmt: skip
    supervisor = service.services.supervisor
    entries = service.services.cache.entries()
    return files, supervisor.active_ids, len(supervisor._reservations), entries


async def test_plan_of_a_download(service):
    before = state(service)
    body = await planned(service)
    assert body == {
        "image_url": URL, "source": "http", "image_size_bytes": len(IMAGE), "download_bytes": len(IMAGE),
        "checksum": f"sha256:{DIGEST}", "checksum_from": "server", "cache_hit": False, "volume_name": "web-01",
        "volume_size_bytes": GIB, "target": "fake", "placement": "new", "provisioned_by": "copy",
        "space_needed_bytes": GIB, "space_free_bytes": 100 * GIB, "refusals": [],
    }  # fmt: skip
    assert state(service) == before
    assert (await (await service.call("GET", "/api/v1/jobs")).get_json())["count"] == 0
    assert URL not in [url for url, *_ in service.source.opens]


async def test_plan_and_dry_run_are_the_same(service):
    assert await held(await service.call("POST", QUERY, json=job()), "Plan") == await planned(service)
    await refused(await service.call("POST", f"{PATH}?dry_run=true", json=job()), 400, "invalid request", "dry_run")


async def test_plan_tells_what_the_job_does(service):
    """The plan and the job agree, for a first and a second volume."""
    for name in ("a", "b"):
        plan = await planned(service, job(name))
        done = await service.done(job(name))
        assert plan["cache_hit"] is done["cache_hit"]
        assert plan["provisioned_by"] == done["volume"]["provisioned_by"]
    assert plan["download_bytes"] == 0


@pytest.mark.parametrize("ours", [True, False])
async def test_plan_shows_replaced_volume(service, ours):
    if ours:
        await service.done()
    else:
        (service.folder / "volumes" / "web-01").write_bytes(b"mine" * 1000)
    before = state(service)
    body = await planned(service)
    assert body["placement"] == "swap"
    assert body["replaces"]["name"] == "web-01"
    assert body["replaces"]["ours"] is ours
    assert body["refusals"] == []
    assert state(service) == before


async def test_plan_in_place_needs_no_space(service):
    await service.done()
    service.target.replace = Placement.IN_PLACE
    body = await planned(service)
    assert (body["placement"], body["space_needed_bytes"]) == ("in-place", 0)


async def test_plan_of_a_clone(folder):
    async with running(folder, more_targets=[FakeCloneTarget(folder / "pool", name="pool")]) as service:
        first = await planned(service, job(target="pool"))
        assert (first["provisioned_by"], first["cache_hit"]) == ("clone", False)
        await service.done(job(target="pool"))
        await service.call("DELETE", f"/api/v1/cache/images/{DIGEST}")
        second = await planned(service, job("b", target="pool"))
        assert (second["provisioned_by"], second["cache_hit"], second["download_bytes"]) == ("clone", True, 0)


async def test_plan_of_a_copy_on_a_cloning_target(folder):
    pool = FakeCloneTarget(folder / "pool", name="pool")
    pool.copy_reason = "the file system does not support reflinks"
    async with running(folder, more_targets=[pool]) as service:
        body = await planned(service, job(target="pool"))
        assert (body["provisioned_by"], body["copy_reason"]) == ("copy", pool.copy_reason)
        assert "copy_reason" not in await planned(service, job())


async def test_plan_has_every_refusal(folder):
    """One answer says all that stands in the way: the queue, the share, the volume in use, the space, the image."""
    async with running(folder, work=False, jobs=JobSettings(max_queued=1)) as service:
        await service.submit(job("web-01"))
        service.target.in_use.add("web-01")
        (service.folder / "volumes" / "web-01").write_bytes(b"x")
        body = await planned(service, job(image_url=ABSENT, image_type="vmdk"))
    messages = [one["message"] for one in body["refusals"]]
    assert len(messages) == 5
    for part in ("still pending", "waiting already", "does not exist", "vmdk", "in use"):
        assert any(part in message for message in messages), part


@pytest.mark.parametrize(
    ("step", "error"),
    [("stat", RemoteUnavailableError("the server is down")), ("capacity", TargetUnavailableError("no volume group"))],
)
async def test_plan_when_a_part_fails(service, step, error):
    """What the other part answers is shown all the same."""
    part = service.source if step == "stat" else service.target
    part.steps.fail_at[step] = error
    body = await planned(service)
    assert body["refusals"][0]["message"] == error.message
    assert ("target" if step == "stat" else "checksum") in body


async def test_plan_when_source_hangs(service, monkeypatch):
    monkeypatch.setattr(dry_run, "SOURCE_TIMEOUT", 0.1)
    service.source.steps.hang_at = "stat"
    body = await planned(service)
    assert [one["message"] for one in body["refusals"]] == ["the source did not answer within 0.1 s"]


async def test_plan_image_larger_than_cache(folder):
    async with running(folder, cache_size=1000) as service:
        (refusal,) = (await planned(service))["refusals"]
    assert "no room" in refusal["message"]


async def test_plan_with_checksum_of_request(service):
    body = await planned(service, job(checksum=DIGEST))
    assert (body["checksum"], body["checksum_from"]) == (f"sha256:{DIGEST}", "request")


async def test_plan_beyond_limits_asks_no_one(service):
    """A caller learns of its limits, and nothing about what lies beyond them."""
    token = service.tokens.create("ci", "operator", limits=Limits(volumes=["ci-*"], sources=["other"]))
    body = await planned(service, role=None, headers={"X-API-Token": token})
    assert [one["error"] for one in body["refusals"]] == ["forbidden", "forbidden"]
    assert body.keys() == {"image_url", "refusals"}
    assert "stat" not in service.source.steps.log


async def test_plan_shows_no_query(service):
    body = await planned(service, job(image_url=f"{URL}?signature=secret"))
    assert body["image_url"] == URL
    assert "secret" not in str(body)


@pytest.mark.parametrize("path", [PATH, QUERY])
async def test_plan_checks_role_and_fields(service, path):
    await refused(await service.call("POST", path, json=job(), role="viewer"), 403, "forbidden", "operator")
    await refused(await service.call("POST", path, json=job(volume_size_gb=0)), 400, "invalid request", "volume_size")


async def test_dry_run_is_true_or_false(service):
    for value in ("perhaps", "", "1", "True", "null"):
        wrong = await service.call("POST", f"/api/v1/jobs?dry_run={value}", json=job())
        await refused(wrong, 400, "invalid request", "^dry_run (must|is) ")
    await held(await service.call("POST", "/api/v1/jobs?dry_run=false", json=job()), "JobAccepted", 202)
