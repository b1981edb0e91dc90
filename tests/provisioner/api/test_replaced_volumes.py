"""Replaced volumes through the whole app: jobs say what they replaced; restore, adopt and expiry."""

from __future__ import annotations

import json
import time

import pytest
import trio
import trio.testing

from provisioner.contracts import Duration, KeepingSettings
from provisioner.contracts.errors import TargetUnavailableError
from provisioner.contracts.testing import FakeTarget
from provisioner.jobs.service_clock import ServiceClock
from tests.contents import first_bytes
from tests.provisioner.api.conftest import IMAGE, job, running
from tests.provisioner.api.document import held, refused

LIST, VOLUME = "/api/v1/volumes/replaced", "/api/v1/volumes/fake/web-01"


def make_foreign(service, name="web-01"):
    (service.target.folder / name).write_bytes(b"theirs")


async def kept(service):
    return (await held(await service.call("GET", LIST), "ReplacedVolumeList"))["replaced"]


async def test_job_says_what_it_replaced(folder):
    audit = folder / "audit"
    async with running(folder, audit=audit) as service:
        make_foreign(service)
        done = await service.done()
        (one,) = await kept(service)
        assert done["replaced"] == {
            "name": "web-01",
            "ours": False,
            "kept_as": one["kept_as"],
            "kept_until": one["kept_until"],
        }
        assert one["replaced_by"] == done["job_id"]
        again = await service.done()
        assert again["replaced"] == {"name": "web-01", "ours": True}
        assert "replaced" not in await service.done(job("web-02"))
        stored = await service.services.store.get(done["job_id"])
        assert stored.replaced.kept_as == one["kept_as"]
    (ended,) = [
        line for line in map(json.loads, audit.read_text().splitlines())
        if line["event"] == "job" and line["job_id"] == done["job_id"]
    ]  # fmt: skip
    assert (ended["replaced"], ended["kept_as"]) == ("foreign", one["kept_as"])


async def test_job_says_so_on_target_that_keeps_nothing(folder):
    other = FakeTarget(folder / "other", name="other")
    async with running(folder, more_targets=[other]) as service:
        (other.folder / "web-01").write_bytes(b"theirs")
        done = await service.done(job(target="other"))
        assert done["replaced"] == {"name": "web-01", "ours": False}
        for what in ("restore", "adopt"):
            response = await service.call("POST", f"/api/v1/volumes/other/web-01/{what}")
            await refused(response, 400, "invalid request", "other cannot keep")


async def test_restore_can_be_undone(service):
    make_foreign(service)
    await service.done()
    path = service.target.folder / "web-01"
    first = await held(await service.call("POST", f"{VOLUME}/restore"), "VolumeRestored")
    assert path.read_bytes() == b"theirs"
    assert (first["ours"], first["replaced"]["ours"]) == (False, True)
    body = {"kept_as": first["replaced"]["kept_as"]}
    second = await held(await service.call("POST", f"{VOLUME}/restore", json=body), "VolumeRestored")
    assert first_bytes(path, len(IMAGE)) == IMAGE
    assert second["ours"]
    assert [one["ours"] for one in await kept(service)] == [False]


async def test_restore_refusals(service):
    make_foreign(service)
    await service.done()
    before = await kept(service)
    for role in ("viewer", "operator"):
        assert (await service.call("POST", f"{VOLUME}/restore", role=role)).status_code == 403
    service.target.in_use.add("web-01")
    await refused(await service.call("POST", f"{VOLUME}/restore"), 409, "conflict", "in use")
    service.target.in_use.clear()
    for body in ({"kept_as": "@kept.other.web-01"}, {"kept_as": "web-01"}):
        await refused(await service.call("POST", f"{VOLUME}/restore", json=body), 404, "not found", "web-01")
    elsewhere = await service.call("POST", "/api/v1/volumes/nowhere/web-01/restore")
    await refused(elsewhere, 404, "not found", "nowhere")
    assert await kept(service) == before


async def test_restore_while_job_works_on_volume(service):
    make_foreign(service)
    await service.done()
    service.converter.steps.hang_at = "flush"
    job_id = (await (await service.submit()).get_json())["job_id"]
    await service.converter.steps.reached.wait()
    for what in ("restore", "adopt"):
        await refused(await service.call("POST", f"{VOLUME}/{what}"), 409, "conflict", job_id)
    await refused(await service.call("DELETE", f"{VOLUME}/replaced"), 409, "conflict", job_id)
    assert len(await kept(service)) == 1


async def test_remove_kept_volume(service):
    for _ in range(2):
        make_foreign(service)
        (service.target.folder / ".lvp" / "web-01.json").unlink(missing_ok=True)
        await service.done()
    first, second = await kept(service)
    path = f"{VOLUME}/replaced"
    for role in ("viewer", "operator"):
        assert (await service.call("DELETE", path, role=role)).status_code == 403
    await refused(await service.call("DELETE", path), 400, "invalid request", "kept_as must say which")
    await refused(await service.call("DELETE", f"{path}?kept_as=web-01"), 404, "not found", "web-01")
    service.target.in_use.add(first["kept_as"])
    await refused(await service.call("DELETE", f"{path}?kept_as={first['kept_as']}"), 409, "conflict", "in use")
    service.target.in_use.clear()
    removed = await service.call("DELETE", f"{path}?kept_as={first['kept_as']}")
    assert (await held(removed, "ReplacedVolumeRemoved"))["kept_as"] == first["kept_as"]
    assert await kept(service) == [second]
    change = list(service.services.notifier.feed.changes(0))[-1]
    assert (change.kind, change.subject.kept_as) == ("volume.expired", first["kept_as"])
    assert (await service.call("DELETE", path)).status_code == 200
    await refused(await service.call("DELETE", path), 404, "not found", "keeps no volume web-01")
    assert first_bytes(service.target.folder / "web-01", len(IMAGE)) == IMAGE


async def test_adopt_makes_volume_ours(service):
    make_foreign(service)
    assert (await service.call("POST", f"{VOLUME}/adopt", role="operator")).status_code == 403
    await held(await service.call("POST", f"{VOLUME}/adopt"), "VolumeAdopted")
    (volume,) = (await held(await service.call("GET", "/api/v1/volumes"), "VolumeList"))["volumes"]
    assert (volume["name"], volume["image_url"]) == ("web-01", "")
    assert (service.target.folder / "web-01").read_bytes() == b"theirs"
    assert (await service.call("DELETE", VOLUME)).status_code == 200


async def expire_once(service):
    """Run the search for expired volumes once."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.services.supervisor.kept.expire)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_clock_a_year_ahead_removes_nothing_for_a_day(service):
    make_foreign(service)
    await service.done()
    wall, uptime = time.time() + 365 * 86400, [0.0]
    service.services.store._clock = ServiceClock(lambda: wall, lambda: uptime[0])
    await expire_once(service)
    assert len(await kept(service)) == 1
    uptime[0] = 86400.0
    await expire_once(service)
    assert await kept(service) == []


async def test_expired_volumes_are_removed(folder):
    async with running(folder) as service:
        service.target.keeping = KeepingSettings(keep_replaced=Duration(3600))
        make_foreign(service)
        for _ in range(2):
            await service.done()
        await expire_once(service)
        assert len(await kept(service)) == 2
        now = time.time() + 3700
        service.services.supervisor.kept.wall = lambda: now
        (ours,) = [one for one in await kept(service) if one["ours"]]
        service.target.in_use.add(ours["kept_as"])
        await expire_once(service)
        assert len(await kept(service)) == 2
        service.target.in_use.clear()
        await expire_once(service)
        assert [one["ours"] for one in await kept(service)] == [False]


@pytest.mark.parametrize("step", ["kept", "remove_kept"])
@pytest.mark.parametrize("error", [TargetUnavailableError("no group"), RuntimeError("a bug")])
async def test_expiry_survives_failing_target(folder, step, error):
    async with running(folder) as service:
        make_foreign(service)
        await service.done()
        now = time.time() + 8 * 86400
        service.services.supervisor.kept.wall = lambda: now
        service.target.steps.fail_at[step] = error
        await expire_once(service)
        service.target.steps.fail_at.clear()
        assert len(await kept(service)) == 1
        await expire_once(service)
        assert await kept(service) == []


async def test_expiry_leaves_volume_that_is_being_restored(service):
    make_foreign(service)
    await service.done()
    now = time.time() + 8 * 86400
    service.services.supervisor.kept.wall = lambda: now

    async def expire():
        await service.services.supervisor.kept._expire("fake", service.target)

    service.target.steps.act_at["restore"] = expire
    await held(await service.call("POST", f"{VOLUME}/restore"), "VolumeRestored")
    assert (service.target.folder / "web-01").read_bytes() == b"theirs"
