"""Tests of event streams over real connections: what they contain, who may read them, and how they end."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from provisioner.config import ServerSettings
from provisioner.config.access import Limits
from tests.provisioner.api.conftest import DIGEST, job, running
from tests.provisioner.api.document import refused
from tests.provisioner.api.events_client import stream
from tests.provisioner.api.served import served

EVENTS = "/api/v1/events"


@pytest.fixture(params=[False, True], ids=["HTTP/1.1", "HTTP/2"])
def http2(request):
    return request.param


def follow(service, url, path=EVENTS, role="viewer", **more):
    return stream(url, path, service.token[role], **more)


def kinds(events):
    return [event.kind for event in events]


async def until(condition):
    """Wait for what a connection causes."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - nothing tells when a connection has ended
            await trio.sleep(0.01)


async def submitted(service, body=None):
    return (await (await service.submit(body)).get_json())["job_id"]


async def test_life_of_a_job(service, http2):
    async with served(service) as (url, _), follow(service, url, http2=http2) as events:
        headers = events.response.headers
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        assert events.response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert (await events.next()).data == {"jobs": [], "active": 0}
        done = await service.done()
        found = await events.until("job.completed")
        assert kinds(found) == ["job.pending", "job.running", "cache.added", "job.completed"]
        assert found[-1].data == done
        assert found[2].data["digest"] == f"sha256:{DIGEST}"
        assert [event.data["status"] for event in found if "status" in event.data] == [
            "pending",
            "running",
            "completed",
        ]
        assert len({event.id for event in found}) == 4


async def test_changes_of_volumes_and_images(service):
    async with served(service) as (url, _), follow(service, url) as events:
        await service.done()
        await events.until("job.completed")
        await service.call("PUT", f"/api/v1/cache/images/{DIGEST}/pin")
        await service.call("DELETE", f"/api/v1/cache/images/{DIGEST}/pin")
        await service.call("POST", "/api/v1/volumes/fake/web-01/resize", json={"volume_size_gb": 2})
        await service.call("POST", "/api/v1/volumes/fake/web-01/resize", json={"volume_size_gb": 2})
        await service.call("DELETE", "/api/v1/volumes/fake/web-01")
        await service.call("POST", "/api/v1/cache/prune")
        found = await events.until("cache.removed")
        assert kinds(found) == [
            "cache.pinned", "cache.unpinned", "volume.resized", "volume.removed", "cache.removed"
        ]  # fmt: skip
        assert [event.data.get("pinned") for event in found[:2]] == [True, False]
        assert found[2].data["size_bytes"] == 2 * 2**30
        assert found[3].data == {"target": "fake", "name": "web-01"}


async def test_stream_of_one_job(service, http2):
    await service.done(job("other"))
    service.converter.steps.hang_at = "flush"
    job_id = await submitted(service)
    await service.converter.steps.reached.wait()
    path = f"/api/v1/jobs/{job_id}/events"
    async with served(service) as (url, _), follow(service, url, path, http2=http2) as events:
        first = await events.next()
        assert (first.kind, first.data["active"]) == ("snapshot", 1)
        assert [one["job_id"] for one in first.data["jobs"]] == [job_id]
        await service.call("POST", f"/api/v1/jobs/{job_id}/cancel")
        rest = await events.rest()
        assert kinds(rest) == ["job.cancelled", "end"]
        assert rest[-1].data["reason"] == "job ended"
    assert service.services.metrics.event_readers._value.get() == 0


async def test_stream_of_an_ended_job(service):
    """It ends at once; a browser that connects again is told not to."""
    job_id = (await service.done())["job_id"]
    path = f"/api/v1/jobs/{job_id}/events"
    async with served(service) as (url, _):
        async with follow(service, url, path) as events:
            first, end = await events.rest()
        assert first.data["jobs"][0]["status"] == "completed"
        assert end.data["reason"] == "job ended"
        async with follow(service, url, path, last=first.id, status=204) as events:
            assert await events.rest() == []
        before = f"{first.id.partition('-')[0]}-0"
        async with follow(service, url, path, last=before) as events:
            assert kinds(await events.rest()) == ["job.pending", "job.running", "job.completed", "end"]


async def test_resume_after_last_event(service):
    async with served(service) as (url, _):
        async with follow(service, url) as events:
            await events.next()
            await service.done()
            seen = await events.until("job.running")
        await service.done(job("web-02"))
        async with follow(service, url, last=seen[-1].id) as events:
            found = await events.until("job.completed") + await events.until("job.completed")
        assert kinds(found) == ["cache.added", "job.completed", "job.pending", "job.running", "job.completed"]


@pytest.mark.parametrize("last", ["00000000-5", "nonsense", "", "1-1"])
async def test_resume_after_unknown_event(service, last):
    """The client gets a snapshot, as without an id."""
    done = await service.done()
    async with served(service) as (url, _), follow(service, url, last=last) as events:
        first = await events.next()
        assert first.kind == "snapshot"
        assert first.data == {"jobs": [done], "active": 0}


async def test_snapshot_has_active_and_newest_jobs(idle):
    names = [f"web-{number}" for number in range(3)]
    ids = [await submitted(idle, job(name)) for name in names]
    await idle.call("POST", f"/api/v1/jobs/{ids[1]}/cancel")
    async with served(idle) as (url, _), follow(idle, url) as events:
        data = (await events.next()).data
    assert {one["job_id"]: one["status"] for one in data["jobs"]} == {
        ids[0]: "pending", ids[1]: "cancelled", ids[2]: "pending"
    }  # fmt: skip
    assert data["active"] == 2


async def test_url_query_is_shown_to_the_submitter_only(idle):
    """As in the response of the job itself; a caller with limits reads all jobs, as in the list."""
    limited = idle.tokens.create("limited", "viewer", limits=Limits(volumes=["none-*"]))
    signed = f"{job()['image_url']}?signature=secret"
    async with served(idle) as (url, _):
        async with follow(idle, url, role="operator") as own, stream(url, EVENTS, limited) as other:
            for events in (own, other):
                await events.next()
            await idle.submit(job(image_url=signed), role="operator")
            shown = (await own.next()).data, (await other.next()).data
        assert shown[0]["image_url"] == signed
        assert "secret" not in str(shown[1])
        assert shown[0]["job_id"] == shown[1]["job_id"]
        body = await (await idle.call("GET", f"/api/v1/jobs/{shown[0]['job_id']}", role="viewer")).get_json()
        assert shown[1] == body


async def test_revoked_token_ends_the_stream(service, http2):
    async with served(service) as (url, _), follow(service, url, http2=http2) as events:
        await events.next()
        service.tokens.revoke("viewer")
        await submitted(service)
        (end,) = await events.rest()
        assert (end.kind, end.data["reason"]) == ("end", "access lost")
        assert "revoked" in end.data["message"]


async def test_revoked_token_ends_an_idle_stream(service, monkeypatch):
    monkeypatch.setattr("provisioner.api.event_stream._RECHECK", 0.01)
    async with served(service) as (url, _), follow(service, url) as events:
        await events.next()
        service.tokens.revoke("viewer")
        (end,) = await events.rest()
        assert end.data["reason"] == "access lost"


async def test_heartbeat_keeps_an_idle_connection(service, monkeypatch, http2):
    """A comment comes while nothing happens; the timeout between requests does not end the stream."""
    monkeypatch.setattr("provisioner.api.event_stream._RECHECK", 0.01)
    monkeypatch.setattr("provisioner.api.event_stream.HEARTBEAT", 0.02)
    monkeypatch.setattr("provisioner.server.config._IDLE_TIMEOUT", 0.05)
    async with served(service) as (url, _), follow(service, url, http2=http2) as events, trio.open_nursery() as nursery:
        await events.next()
        nursery.start_soon(events.next)
        await until(lambda: events.blocks.count(": alive") >= 20)
        nursery.cancel_scope.cancel()


async def test_streams_are_limited(folder):
    server = ServerSettings(max_event_streams=3, max_event_streams_per_address=2)
    async with AsyncExitStack() as opened:
        service = await opened.enter_async_context(running(folder, server=server))
        url, _ = await opened.enter_async_context(served(service))
        async with follow(service, url) as one, follow(service, url) as two:
            for events in (one, two):
                await events.next()
            async with follow(service, url, status=429) as refused_one:
                assert "2 event streams" in (await refused_one.response.aread()).decode()
            async with (
                follow(service, url, local="127.0.0.2") as third,
                follow(service, url, local="127.0.0.2", status=503) as fourth,
            ):
                assert (await third.next()).kind == "snapshot"
                assert "3 event streams" in (await fourth.response.aread()).decode()


async def test_all_places_taken(service):
    service.services.notifier.feed.most_readers = 0
    response = await service.call("GET", EVENTS)
    await refused(response, 503, "service unavailable", "event streams are open")
    assert response.headers["Retry-After"]


async def test_client_that_leaves_frees_its_place(service, http2):
    feed = service.services.notifier.feed
    async with served(service) as (url, listener):
        async with follow(service, url, http2=http2) as events:
            await events.next()
            assert len(feed._readers) == 1
        await until(lambda: not feed._readers and not len(listener.connections))


async def test_service_that_stops_ends_streams(service, http2):
    async with served(service) as (url, _), follow(service, url, http2=http2) as events:
        await events.next()
        feed = service.services.notifier.feed
        feed.publish("service.stopping", None)
        await service.done()
        feed.close()
        found = await events.rest()
        assert kinds(found) == [
            "service.stopping", "job.pending", "job.running", "cache.added", "job.completed", "end"
        ]  # fmt: skip
        assert found[-1].data["reason"] == "service stopped"


async def test_reader_that_comes_while_the_service_stops(service):
    """It is told so after the snapshot, also in the stream of a job."""
    job_id = (await service.done())["job_id"]
    service.services.notifier.feed.publish("service.stopping", None)
    await service.services.supervisor.drain()
    async with served(service) as (url, _):
        async with follow(service, url) as events:
            assert [(await events.next()).kind for _ in range(2)] == ["snapshot", "service.stopping"]
        async with follow(service, url, f"/api/v1/jobs/{job_id}/events") as events:
            assert kinds(await events.rest()) == ["snapshot", "service.stopping", "end"]


async def test_reader_that_fell_behind_is_ended(service):
    """It is told so, and gets a snapshot when it connects again."""
    feed = service.services.notifier.feed
    async with served(service) as (url, _), follow(service, url) as events:
        first = await events.next()
        for number in range(feed._kept.maxlen + 1):  # without an await: the reader cannot follow
            feed.publish("volume.removed", {"number": number})
        (end,) = await events.rest()
        assert end.data["reason"] == "too slow"
        async with follow(service, url, last=first.id) as again:
            assert (await again.next()).kind == "snapshot"
    assert service.services.metrics.events_dropped.labels("change")._value.get() == 1


async def test_http2_reader_that_opens_no_window(service, monkeypatch):
    """Its connection is closed; jobs and other readers do not wait for it."""
    monkeypatch.setattr("provisioner.server.hypercorn_quirks.PIECE_TIMEOUT", 0.2)
    feed = service.services.notifier.feed
    async with (
        served(service) as (url, listener),
        follow(service, url, http2=True) as deaf,
        follow(service, url) as other,
    ):
        await deaf.next()
        await other.next()
        for number in range(200):  # 400 KiB, more than the window and hypercorn's buffer
            feed.publish("volume.removed", {"text": "x" * 2000, "number": number})
        assert (await service.done())["status"] == "completed"
        found = await other.until("job.completed")
        assert len(found) == 204
        await until(lambda: len(listener.connections) == 1)
        assert len(feed._readers) == 1


async def test_head_of_a_stream(service):
    response = await service.call("HEAD", EVENTS)
    assert (response.status_code, response.content_type) == (200, "text/event-stream")


async def test_unknown_job(service):
    await refused(await service.call("GET", "/api/v1/jobs/unknown/events"), 404, "job not found", "")
