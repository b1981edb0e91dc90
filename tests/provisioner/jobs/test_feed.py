"""Tests of the feed: positions, limits, progress, and readers that fall behind."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import trio
import trio.testing

from provisioner.contracts.errors import TooManyRequestsError, UnavailableError
from provisioner.jobs.feed import Feed
from provisioner.pipeline.progress import Snapshot, Stage


class Running:
    """As much of a job as the feed looks at."""

    def __init__(self, job_id):
        self.job_id = job_id


def at(done, eta=None):
    return Snapshot(Stage.DOWNLOADING, float(done), done, 100, eta)


def kinds(reader):
    changes, progress = reader.take()
    return [one.kind for one in changes], [one.snapshot.bytes_processed for one in progress]


def test_reader_gets_changes_after_its_position():
    feed = Feed()
    feed.publish("cache.added", 1)
    with feed.reader("a", feed.head) as reader:
        assert kinds(reader) == ([], [])
        feed.publish("cache.pinned", 2)
        feed.publish("cache.removed", 3)
        assert kinds(reader) == (["cache.pinned", "cache.removed"], [])
        assert kinds(reader) == ([], [])


def test_reader_of_one_job():
    feed = Feed()
    with feed.reader("a", 0, "one") as reader:
        feed.publish("job.pending", None, "one")
        feed.publish("job.pending", None, "other")
        feed.publish("volume.removed", None)
        feed.publish("service.stopping", None)
        assert kinds(reader) == (["job.pending", "service.stopping"], [])


def test_ids_of_kept_changes_are_positions():
    feed = Feed(kept=3)
    for number in range(1, 6):
        feed.publish("x", number)
    positions = {number: feed.position(feed.id_of(number)) for number in range(8)}
    assert positions == {0: None, 1: None, 2: 2, 3: 3, 4: 4, 5: 5, 6: None, 7: None}
    assert [change.number for change in feed.changes(3)] == [4, 5]
    assert Feed().position(feed.id_of(4)) is None  # another run of the service


@pytest.mark.parametrize(
    "text", ["", "-", "x", "-1", "0-0", "{run}-", "{run}--1", "{run}-²", "{run}-1x", "{run}-" + "1" * 5000]
)
def test_foreign_ids(text):
    feed = Feed()
    feed.publish("x", 1)
    run = feed.id_of(1).partition("-")[0]
    assert feed.position(text.replace("{run}", run)) is None


def test_reader_behind_the_oldest_change():
    dropped = []
    feed = Feed(kept=10)
    feed.on_dropped = lambda kind, count: dropped.append((kind, count))
    with feed.reader("a", 0) as reader:
        for number in range(12):
            feed.publish("x", number)
        with pytest.raises(UnavailableError, match="2 changes were not read in time"):
            reader.take()
    assert dropped == [("change", 2)]


def test_many_changes_come_in_pieces_and_none_is_lost():
    feed = Feed()
    with feed.reader("a", 0) as reader:
        for number in range(100):
            feed.publish(f"x.{number}", number)
        found = []
        while piece := kinds(reader)[0]:
            assert len(piece) <= 32
            found += piece
    assert found == [f"x.{number}" for number in range(100)]


def test_only_the_latest_progress_is_kept():
    dropped = []
    feed = Feed()
    feed.on_dropped = lambda kind, count: dropped.append((kind, count))
    job = Running("one")
    with feed.reader("a", 0) as reader, feed.reader("a", 0, "other") as other:
        for done in (10, 20, 30):
            feed.look([(job, at(done))])
        assert kinds(reader) == ([], [30])
        assert kinds(reader) == ([], [])
        assert kinds(other) == ([], [])
        feed.look([(job, at(30, eta=7.0))])  # only the time left has changed
        assert kinds(reader) == ([], [])
        feed.look([(job, at(40))])
        feed.publish("job.completed", job, "one")
        assert kinds(reader) == (["job.completed"], [])
    assert dropped == [("progress", 2)]


def test_places_are_limited():
    counts = []
    feed = Feed()
    feed.on_readers = counts.append
    feed.most_readers, feed.most_per_group = 4, 2
    with feed.reader("a", 0), feed.reader("a", 0):
        with pytest.raises(TooManyRequestsError, match="2 event streams"), feed.reader("a", 0):
            pass
        with feed.reader(None, 0), feed.reader(None, 0), pytest.raises(UnavailableError), feed.reader("b", 0):
            pass
    assert counts == [1, 2, 3, 4, 3, 2, 1, 0]


async def test_readers_are_woken(autojump_clock):
    feed = Feed()
    woken = []

    async def follow(reader):
        await reader.wait(10**6)
        woken.append(trio.current_time())

    with ExitStack() as open_readers:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run, list)
            for number in range(20):
                reader = open_readers.enter_context(feed.reader(str(number), 0))
                reader.take()
                nursery.start_soon(follow, reader)
            await trio.sleep(1)
            feed.publish("x", 1)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert max(woken) < 2
    assert len(woken) == 20


async def test_feed_without_readers_sleeps(autojump_clock):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Feed().run, list)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        nursery.cancel_scope.cancel()


async def test_progress_is_looked_at_for_readers_only(autojump_clock):
    feed = Feed()
    looks = []

    def running():
        looks.append(trio.current_time())
        return [(Running("one"), at(len(looks)))]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, running)
        await trio.sleep(100)
        assert looks == []
        with feed.reader("a", 0) as reader:
            await trio.sleep(10)
            assert 9 <= len(looks) <= 10
            assert kinds(reader) == ([], [len(looks)])
        nursery.cancel_scope.cancel()
