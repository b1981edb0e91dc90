"""One host for an interleaving run: real supervisor, pipeline, cache and store over fakes. Records each end."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import trio.lowlevel

from provisioner.cache import ImageCache
from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.testing import FakeKeepingTarget
from provisioner.jobs import JobFilter, JobStore, Supervisor
from provisioner.jobs.notify import Notifier
from provisioner.observe.metrics import Metrics
from provisioner.pipeline.pipeline import Pipeline
from tests.cancellation.harness import Harness, plain_logs
from tests.interleavings.promises import check_now, check_restart, check_seed

# A RAM disk if there is one: each run opens a database of its own.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass
class Done:
    """How one operation ended: ``result`` or ``error``, and the logical times between which it ran."""

    kind: str
    begin: int = -1
    end: int = -1
    result: Any = None
    error: BaseException | None = None

    @property
    def succeeded(self) -> bool:
        return self.end >= 0 and self.error is None


@dataclass
class Host(Harness):
    """``known``: jobs from before the operations; ``job_ends``: the logical time of each job's end."""

    done: list[Done] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    job_ends: dict[str, int] = field(default_factory=dict)

    @asynccontextmanager
    async def alive(self, schedule):
        """Run the service's parts during the block; at its end shut down without grace."""
        self.schedule = schedule
        self.store = JobStore(self.folder / "jobs.sqlite")
        await self.store.open()
        self.cache = ImageCache(self.folder / "cache", self.cache_settings)
        self.pipeline = Pipeline(self.back_ends, self.cache, require_checksum=True)
        self.supervisor = Supervisor(self.pipeline, self.store, self.jobs, Metrics(), Notifier({}), self._note_end)
        try:
            async with trio.open_nursery() as outer:
                await outer.start(self.cache.run)
                await self.supervisor.recover()
                await outer.start(self._run_jobs)
                yield self
                schedule.stop()
                self.stop_jobs()
                await self.jobs_stopped.wait()
                outer.cancel_scope.cancel()
        finally:
            schedule.stop()
            await self.store.aclose()

    async def _run_jobs(self, *, task_status) -> None:
        self.jobs_stopped = trio.Event()
        try:
            with trio.CancelScope() as scope:
                self.stop_jobs = scope.cancel
                await self.supervisor.run(task_status=task_status)
        finally:
            self.jobs_stopped.set()

    def _note_end(self, job) -> None:
        self.job_ends[job.job_id] = self.schedule.now

    async def operate(self, operation) -> None:
        """Run one operation and record its end."""
        await self.schedule.point(f"begin {operation.__name__}")
        done = Done(operation.__name__, self.schedule.now)
        self.done.append(done)
        try:
            done.result = await operation(self)
            if done.kind in {"submit", "submit_seeded"}:
                assert self.has_stored(done.result.job_id), "a job was accepted before it was on disk"
        except ProvisionerError as error:
            done.error = error
        done.end = self.schedule.now

    def has_stored(self, job_id: str) -> bool:
        """Return whether another process would find the job on disk now."""
        with closing(sqlite3.connect(self.folder / "jobs.sqlite")) as db:
            return db.execute("SELECT 1 FROM jobs WHERE job_id = ?", (job_id,)).fetchone() is not None

    def of(self, kind: str) -> list[Done]:
        """Return the operations of that kind that succeeded."""
        return [done for done in self.done if done.kind == kind and done.succeeded]

    async def all_jobs(self):
        return {job.job_id: job for job in (await self.store.page(JobFilter(), 0, 1000))[0]}

    def kept(self) -> list[bytes]:
        """Return the beginning of each kept volume."""
        kept = [path for path in (self.folder / "main/.lvp/kept").glob("*") if path.suffix != ".record"]
        return [content for path in kept if (content := self.volume(path)) is not None]

    def at_rest(self) -> bool:
        """Return whether no job is active, or none will run before the restart."""
        return self.supervisor.active_count == 0 or self.jobs_stopped.is_set()

    def check_disk(self) -> None:
        """Check that nothing is left behind, except what the next start of a drained host resumes."""
        if not self.supervisor.draining:
            self.assert_nothing_left()

    async def settle(self) -> None:
        """Let active jobs end, outside any schedule."""
        while self.supervisor.active_count:
            await trio.lowlevel.checkpoint()


def scenario(*operations, before=None, keeping=None):
    """Return a scenario for `explore`: run the operations on a new host, check every promise, restart.

    ``before(host)`` prepares the host, outside the schedule. With ``keeping``, the target keeps replaced volumes.
    """

    async def play(schedule, clock) -> None:
        folder = Path(tempfile.mkdtemp(prefix="lvp-", dir=MEMORY))
        try:
            with plain_logs():
                target = FakeKeepingTarget(folder / "main", name="main", keeping=keeping) if keeping else None
                await _play(Host(folder, target=target), schedule, clock, operations, before)
        finally:
            shutil.rmtree(folder)

    return play


async def _play(host, schedule, clock, operations, before) -> None:
    async with host.alive(schedule):
        if before is not None:
            await before(host)
        host.known |= (await host.all_jobs()).keys()
        host.old, host.kept_before = host.volume(), host.kept()

        def finished() -> bool:
            return len(host.done) == len(operations) and all(done.end >= 0 for done in host.done) and host.at_rest()

        async with trio.open_nursery() as nursery:
            schedule.active = True
            for operation in operations:
                nursery.start_soon(host.operate, operation)
            try:
                await schedule.run(finished, clock)
            finally:
                schedule.stop()
        stored = await host.all_jobs()
        check_now(host, stored)
    host.check_disk()
    check_seed(host, stored)
    host.before_restart = host.volume()
    async with host.alive(schedule):
        await host.settle()
        again = await host.all_jobs()
        check_restart(host, stored, again)
    host.assert_nothing_left()
    check_seed(host, again)
