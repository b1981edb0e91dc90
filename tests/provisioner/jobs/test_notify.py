"""Tests of the notifier: which observers get changes, and what they get at the start."""

from __future__ import annotations

import trio
import trio.testing

from provisioner.contracts import ChangeEvent, Observer
from provisioner.contracts.errors import UnavailableError
from provisioner.jobs.change_events import change_event, newest_ends
from provisioner.jobs.feed import VolumeChange
from provisioner.jobs.notify import Notifier
from tests.provisioner.api.conftest import DIGEST, URL, job, running


class Stages(Observer):
    """An observer of stages, as older plugins have it."""

    async def job_changed(self, event):
        raise AssertionError("no stage was notified")


class Everything(Stages):
    def __init__(self, *failures):
        self.failures = list(failures)
        self.ended, self.seen = None, []

    async def changed(self, event):
        self.seen.append(event)
        if self.failures:
            raise self.failures.pop(0)

    async def run(self, ended):
        self.ended = ended
        await trio.sleep_forever()


END = ChangeEvent("x-completed-1", "job.completed", 1.0, {})


async def test_changes_go_to_those_who_want_them(autojump_clock):
    everything = Everything(RuntimeError("a bug"))
    notifier = Notifier({"stages": Stages(), "everything": everything})
    tries = []

    async def ended():
        tries.append(trio.current_time())
        if len(tries) < 3:
            raise UnavailableError("the disk is full")
        return [END]

    async with trio.open_nursery() as nursery:
        await nursery.start(notifier.run, ended)
        notifier.feed.publish("volume.removed", VolumeChange(target="files", name="web-01"))
        notifier.feed.publish("service.stopping", None)
        notifier.feed.publish("volume.removed", VolumeChange(target="files", name="web-02"))
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert everything.ended == [END]
    assert len(tries) == 3
    assert [event.data["name"] for event in everything.seen] == ["web-01", "web-02"]


async def test_work_that_fails_is_not_the_end(autojump_clock):
    class Broken(Everything):
        async def run(self, ended):
            raise RuntimeError("a bug")

    broken = Broken()
    async with trio.open_nursery() as nursery:
        await nursery.start(Notifier({"broken": broken}).run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_newest_ends(tmp_path):
    """They have the ids that the changes had, and no queries."""
    async with running(tmp_path) as service:
        seen = []
        service.services.notifier.feed.on_change = lambda kind, subject: seen.append(change_event(kind, subject))
        done = await service.done(job(image_url=f"{URL}?signature=hidden", checksum=f"sha256:{DIGEST}"))
        (end,) = await newest_ends(service.services.store)
        assert end.kind == f"job.{done['status']}"
        assert end.data["image_url"] == URL
        assert "hidden" not in str(seen)
        (told,) = [event for event in seen if event.event_id == end.event_id]
        assert (told.kind, told.data) == (end.kind, end.data)
