"""The feed of changes: a bounded log of numbered changes, and the readers that follow it.

A change (a job's new status, a removed volume, a new image in the cache) is kept in one log for all readers. A reader
has only a position in it, so a slow one costs no memory and no time of a job; one that falls behind the oldest change
is cut off and starts again. Progress is not kept: each reader gets the latest of each running job, at most once a tick.
"""

from __future__ import annotations

import secrets
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
import trio

from provisioner.contracts.errors import TooManyRequestsError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from provisioner.contracts import Volume
    from provisioner.jobs.job import Job
    from provisioner.pipeline.progress import Snapshot

# Changes kept for readers that connect again. A job makes three, so this covers some hundred jobs; about 2 KiB each.
KEPT = 1000
# Changes that a reader gets at once, which bounds its memory.
_AT_ONCE = 32
# Seconds between two looks at the progress of running jobs, and more for each reader: 200 readers wait for 3 s.
_TICK, _TICK_PER_READER = 1.0, 0.01
# Seconds for each reader between two rounds of waking, so that changes in quick succession are sent together: 1 s with
# 200 readers. A reader takes some 0.15 ms, so all of them take 3 % of a processor at most.
_ROUND_PER_READER = 0.005
# Readers woken before other tasks run again: each sends for some 0.2 ms, and the loop is not held for longer than 2 ms.
_WOKEN_AT_ONCE = 8
# The most characters of a number in an id.
_DIGITS = 18


@dataclass(slots=True, eq=False)
class Change:
    """A change. ``kind`` is such as ``job.completed``; ``subject`` is the changed object as it was then.

    ``snapshot``: the progress of a job that has not ended. ``rendered``: the texts made of the change, by audience.
    """

    number: int
    kind: str
    subject: object
    job_id: str | None = None
    snapshot: Snapshot | None = None
    rendered: dict[object, bytes] = field(default_factory=dict)


class VolumeChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A changed volume. ``kept_as``: the name under which it is, or was, kept."""

    target: str
    name: str
    path: str | None = None
    size_bytes: int | None = None
    kept_as: str | None = None

    @classmethod
    def of(cls, volume: Volume, kept_as: str | None = None) -> VolumeChange:
        """Return the change of a volume that exists."""
        return cls(
            target=volume.target, name=volume.name, path=volume.path, size_bytes=volume.size_bytes, kept_as=kept_as
        )


@dataclass(slots=True, eq=False)
class JobProgress:
    """The latest progress of a running job; ``tick`` says when it changed."""

    tick: int
    job: Job
    snapshot: Snapshot
    rendered: dict[object, bytes] = field(default_factory=dict)


class Feed:
    """The changes of this run of the service. Ids of an earlier run are unknown."""

    def __init__(self, kept: int = KEPT) -> None:
        self._run = secrets.token_hex(4)
        self._kept: deque[Change] = deque(maxlen=kept)
        self._readers: set[Reader] = set()
        self._news, self._first_reader = trio.Event(), trio.Event()
        self._tick = 0
        self._progress: dict[str, JobProgress] = {}
        self.head = 0
        """The number of the newest change."""
        self.closed = False
        self.on_change: Callable[[str, object], None] = lambda _kind, _subject: None
        """Called with each change; must not wait."""
        self.most_readers, self.most_per_group = 128, 32
        self.on_readers: Callable[[int], None] = lambda _count: None
        """Called with the number of readers when it changes."""
        self.on_dropped: Callable[[str, int], None] = lambda _kind, _count: None
        """Called when a reader misses ``progress`` or ``change`` events, with how many."""

    # --- for those who change something ---

    def publish(self, kind: str, subject: object, job_id: str | None = None, snapshot: Snapshot | None = None) -> None:
        """Add a change. Never waits."""
        self.head += 1
        self._kept.append(Change(self.head, kind, subject, job_id, snapshot))
        if job_id is not None:
            self._progress.pop(job_id, None)
        self._news.set()
        self.on_change(kind, subject)

    def publish_job(self, job: Job, snapshot: Snapshot | None = None) -> None:
        """Add a job's new status; ``snapshot`` if it has not ended."""
        self.publish(f"job.{job.status.value}", job, job.job_id, snapshot)

    def close(self) -> None:
        """End every reader once it has the changes so far; later readers end at once."""
        self.closed = True
        self._news.set()

    # --- for readers ---

    def id_of(self, number: int) -> str:
        """Return the id by which a client resumes after the change."""
        return f"{self._run}-{number}"

    def position(self, last_id: str) -> int | None:
        """Return the number of the change with this id, or None if the changes after it are not all kept."""
        run, _, digits = last_id.partition("-")
        if run != self._run or not (digits.isascii() and digits.isdigit()) or len(digits) > _DIGITS:
            return None
        number = int(digits)
        return number if self._oldest - 1 <= number <= self.head else None

    def changes(self, after: int, job_id: str | None = None) -> Iterator[Change]:
        """Yield the kept changes after a number, of all jobs or of one. Changes of the service itself are in both."""
        newer = islice(self._kept, max(0, after + 1 - self._oldest), None)
        return (one for one in newer if job_id is None or one.job_id == job_id or one.kind.startswith("service."))

    @property
    def _oldest(self) -> int:
        return self._kept[0].number if self._kept else self.head + 1

    @contextmanager
    def reader(self, group: str | None, position: int, job_id: str | None = None) -> Iterator[Reader]:
        """Provide a reader of the changes after ``position``. ``group`` None: no limit per address.

        Raises TooManyRequestsError if the address has its share, UnavailableError if all places are taken.
        """
        if group is not None and sum(one.group == group for one in self._readers) >= self.most_per_group:
            raise TooManyRequestsError(f"this address has {self.most_per_group} event streams, the maximum; close one")
        if len(self._readers) >= self.most_readers:
            raise UnavailableError(f"{self.most_readers} event streams are open, the maximum; poll, or try again later")
        made = Reader(self, group, position, job_id)
        self._readers.add(made)
        self.on_readers(len(self._readers))
        self._news.set()
        self._first_reader.set()
        try:
            yield made
        finally:
            self._readers.discard(made)
            self.on_readers(len(self._readers))

    # --- at work ---

    async def run(self, running: Callable[[], Iterable[tuple[Job, Snapshot]]]) -> None:
        """Wake readers and look at the progress of the ``running`` jobs, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wake)
            nursery.start_soon(self._watch, running)

    async def _wake(self) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            for count, reader in enumerate(list(self._readers), 1):
                reader.wake()
                if count % _WOKEN_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            await trio.sleep(_ROUND_PER_READER * len(self._readers))

    async def _watch(self, running: Callable[[], Iterable[tuple[Job, Snapshot]]]) -> None:
        while True:
            if not self._readers:  # an idle service does not wake up
                self._first_reader = trio.Event()
                await self._first_reader.wait()
            await trio.sleep(_TICK + _TICK_PER_READER * len(self._readers))
            if self._readers:
                self.look(running())

    def look(self, running: Iterable[tuple[Job, Snapshot]]) -> None:
        """Note the progress of jobs that moved."""
        tick = self._tick + 1
        known, self._progress = self._progress, {}
        for job, snapshot in running:
            before = known.get(job.job_id)
            if before is not None and _is_same(before.snapshot, snapshot):
                self._progress[job.job_id] = before
            else:
                self._progress[job.job_id] = JobProgress(tick, job, snapshot)
                self._tick = tick
        if self._tick == tick:
            self._news.set()

    def progress(self, after: int, job_id: str | None) -> tuple[int, list[JobProgress]]:
        """Return the newest tick, and what moved since ``after``."""
        found = [one for one in self._progress.values() if one.tick > after and job_id in {None, one.job.job_id}]
        return self._tick, found


def _is_same(one: Snapshot, other: Snapshot) -> bool:
    """Return whether a job has not moved: the time left changes even then."""
    return replace(one, eta_sec=None, changed_at=0.0) == replace(other, eta_sec=None, changed_at=0.0)


class Reader:
    """One reader's position in the feed."""

    def __init__(self, feed: Feed, group: str | None, position: int, job_id: str | None) -> None:
        self._feed = feed
        self._woken = trio.Event()
        self._tick = feed._tick  # noqa: SLF001 - one unit with the feed
        self.group = group
        self.position = position
        self.job_id = job_id

    def wake(self) -> None:
        """Make ``wait`` return."""
        self._woken.set()

    async def wait(self, seconds: float) -> None:
        """Wait until there may be something new, at most ``seconds``."""
        with trio.move_on_after(seconds):
            await self._woken.wait()

    def take(self) -> tuple[list[Change], list[JobProgress]]:
        """Return the next changes and the latest progress, nothing if there is nothing new.

        Progress comes only when no change is left. Raises UnavailableError if the reader has fallen behind.
        """
        self._woken = trio.Event()
        feed = self._feed
        if (missed := feed._oldest - 1 - self.position) > 0:  # noqa: SLF001
            feed.on_dropped("change", missed)
            raise UnavailableError(f"{missed} changes were not read in time and are no longer kept")
        changes = list(islice(feed.changes(self.position, self.job_id), _AT_ONCE))
        if len(changes) == _AT_ONCE:
            self.position = changes[-1].number
            self._woken.set()
            return changes, []
        self.position = feed.head
        tick, progress = feed.progress(self._tick, self.job_id)
        if (missed := tick - self._tick - 1) > 0 and progress:
            feed.on_dropped("progress", missed)
        self._tick = tick
        return changes, progress
