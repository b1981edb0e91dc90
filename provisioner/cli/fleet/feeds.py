"""Follows the jobs of many hosts: one event stream for each host, and polling where there is none.

Each host has a thread that puts what it learns into one queue; the main thread alone keeps state and prints.
"""

from __future__ import annotations

import json
import queue
import resource
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from provisioner.cli.client import ApiError
from provisioner.cli.connection import path
from provisioner.cli.exit_status import CliError
from provisioner.cli.fleet.answers import job_of
from provisioner.cli.fleet.calls import start_thread
from provisioner.cli.transport import UnreachableError
from provisioner.client.requests import EVENT_TIMEOUT
from provisioner.client.waiting import ENDED

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from provisioner.cli.fleet.hosts import Fleet

# Seconds between two polls of a host, and what each host of the fleet adds: 200 hosts are polled every 4 s.
_POLL, _POLL_PER_HOST = 1.0, 0.02
# Seconds until a host that did not answer is asked again: the first time, and at most.
_FIRST_RETRY, _LONGEST_RETRY = 1.0, 10.0
# Seconds until a host whose stream could not be opened is asked for one again.
_STREAM_AGAIN = 60.0
_PAGE = 1000
# Descriptors of the process beside those of connections.
_OTHERS = 32


@dataclass(frozen=True, slots=True)
class News:
    """What a host's thread has learned: a job, that the host is away (``error``), or nothing but that it answers."""

    host: int
    job: Mapping[str, Any] | None = None
    error: str | None = None
    # Whether it makes no sense to ask again.
    final: bool = False
    # Of a list of the host's active jobs: their ids. Others have ended.
    active: Collection[str] | None = None


class Feed:
    """The news of a fleet's hosts, as they come.

    ``jobs_of`` says which jobs of a host are followed until their end; None: all active jobs, without an end.
    """

    def __init__(self, fleet: Fleet, jobs_of: Mapping[int, Sequence[str]] | None) -> None:
        self.fleet, self._jobs_of = fleet, jobs_of
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._heard: dict[int, float] = {}
        # For the threads of the hosts.
        self.connecting = threading.Semaphore(fleet.limits.parallel)
        self.stopped = threading.Event()

    def start(self) -> None:
        """Start a thread for each host that has jobs to follow. Raises CliError if there are too many."""
        numbers = list(range(len(self.fleet.hosts))) if self._jobs_of is None else list(self._jobs_of)
        streams = streams_for(len(numbers), 2 * self.fleet.limits.parallel + _OTHERS)
        for place, number in enumerate(numbers):
            self._heard[number] = time.monotonic()
            wanted = None if self._jobs_of is None else set(self._jobs_of[number])
            start_thread(_Follower(self, number, wanted, streams=place < streams).run)

    def stop(self) -> None:
        """Let the threads end when they wake up."""
        self.stopped.set()

    def next(self, seconds: float) -> News | None:
        """Return the next news, None if there are none for so long."""
        try:
            return self._news.get(timeout=max(0.001, seconds))
        except queue.Empty:
            return None

    def silent(self, seconds: float) -> list[int]:
        """Return the hosts from which nothing was heard for so long: not even an error, for example of a time limit."""
        now = time.monotonic()
        return [number for number, heard in self._heard.items() if now - heard > seconds]

    # --- for the threads of the hosts ---

    def put(self, news: News) -> None:
        self.hear(news.host)
        self._news.put(news)

    def hear(self, number: int) -> None:
        self._heard[number] = time.monotonic()


class _Follower:
    """The thread of one host."""

    def __init__(self, feed: Feed, number: int, wanted: set[str] | None, *, streams: bool) -> None:
        """``wanted``: the jobs to follow until they have ended; None: all, for ever."""
        self._streams = streams
        self._feed, self._number, self._open = feed, number, wanted
        self._client = feed.fleet.client(feed.fleet.hosts[number])
        self._pause = _POLL + _POLL_PER_HOST * len(feed.fleet.hosts)
        self._tell, self._stopped, self._connecting = feed.put, feed.stopped, feed.connecting

    def run(self) -> None:
        retry, stream_at = _FIRST_RETRY, 0.0
        while not self._is_over():
            try:
                streamed = self._streams and time.monotonic() >= stream_at and self._stream()
                if self._is_over():
                    return
                with self._connecting:
                    self._poll()
                retry = _FIRST_RETRY
                if not streamed and time.monotonic() >= stream_at:
                    stream_at = time.monotonic() + _STREAM_AGAIN
                self._stopped.wait(_FIRST_RETRY if streamed else self._pause)
            except (ApiError, UnreachableError) as error:
                self._tell(News(self._number, error=error.cause, final=not error.temporary))
                if not error.temporary and self._open is not None:
                    return
                self._stopped.wait(retry)
                retry = min(retry * 2, _LONGEST_RETRY)
            except (CliError, LookupError, TypeError, ValueError, AttributeError):
                self._tell(News(self._number, error="the answer is not one of the service", final=True))
                if self._open is not None:
                    return
                self._stopped.wait(_LONGEST_RETRY)

    def _is_over(self) -> bool:
        return self._stopped.is_set() or self._open == set()

    def _stream(self) -> bool:
        """Tell of jobs as their events come; return whether there were any. Ends with the stream."""
        seen = False
        self._connecting.acquire()
        held = True
        try:
            for kind, text in self._client.events(path("events"), lambda: self._feed.hear(self._number)):
                seen = True
                if held:  # the stream is open
                    held = False
                    self._connecting.release()
                self._read(kind, text)
                if self._is_over():
                    break
        finally:
            if held:
                self._connecting.release()
        return seen

    def _read(self, kind: str, text: str) -> None:
        if kind == "snapshot":
            jobs = json.loads(text)["jobs"]
            self._tell_jobs(jobs, [str(job["job_id"]) for job in jobs if job["status"] not in ENDED])
            self._ask_others({str(job["job_id"]) for job in jobs})
        elif kind.startswith("job."):
            self._tell_job(json.loads(text))

    def _poll(self) -> None:
        """Ask for the active jobs, and for each followed one that is not among them."""
        jobs: dict[str, Mapping[str, Any]] = {}
        for status in ("pending", "running"):
            for job in self._client.get(path("jobs"), {"status": status, "limit": _PAGE}).data["jobs"]:
                jobs[str(job["job_id"])] = job
        self._tell_jobs(list(jobs.values()), list(jobs))
        self._ask_others(jobs.keys())

    def _ask_others(self, known: Collection[str]) -> None:
        """Ask for each followed job that is not among the known ones: it has ended."""
        for job_id in sorted((self._open or set()).difference(known)):
            self._tell_job(self._client.get(path("jobs", job_id)).data)

    def _tell_jobs(self, jobs: Sequence[Mapping[str, Any]], active: Sequence[str]) -> None:
        for job in jobs:
            self._tell_job(job)
        self._tell(News(self._number, active=frozenset(active)))

    def _tell_job(self, answer: Any) -> None:
        job = job_of(answer)
        job_id, status = job["job_id"], job["status"]
        if self._open is None:
            self._tell(News(self._number, job=job))
        elif job_id in self._open:
            self._tell(News(self._number, job=job))
            if status in ENDED:
                self._open.discard(job_id)


def streams_for(hosts: int, reserve: int) -> int:
    """Return how many of ``hosts`` streams may be open at once, with ``reserve`` descriptors left for all else.

    Raises the process's limit as far as that is allowed. Hosts beyond it are polled.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = hosts + reserve
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return hosts
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
    return max(0, max(soft, raised) - reserve)


# Seconds without a sign of life after which a host counts as away, even if its thread still waits.
SILENCE = EVENT_TIMEOUT * 2
