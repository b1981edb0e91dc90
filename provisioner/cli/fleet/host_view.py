"""What is known of one host: its health, its targets, and its active jobs with their rates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from provisioner.cli.fleet.failures import Failure
from provisioner.cli.fleet.waiting import WatchedJob
from provisioner.client.waiting import ENDED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provisioner.cli.fleet.feeds import News


@dataclass(slots=True)
class HostView:
    """A host as it was last heard of. ``ended`` counts the jobs that were seen to end, by status."""

    name: str
    error: str | None = None
    health: Mapping[str, Any] = field(default_factory=dict)
    targets: Sequence[Mapping[str, Any]] = ()
    jobs: dict[str, WatchedJob] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)

    def set_result(self, result: Mapping[str, Any] | Failure) -> None:
        """Take the answers to the questions of a round, or why there are none."""
        if isinstance(result, Failure):
            self.error = result.message
        else:
            self.set_facts(result)

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """Take health and targets."""
        self.error, self.health = None, facts["health"]
        self.targets = facts["targets"]

    def take(self, news: News) -> None:
        """Take the news of the host's jobs. An error is one of the host only until its next answer."""
        if news.error is not None:
            self.error = news.error
        if news.job is not None:
            self.hear(news.job)
        if news.active is not None:
            self.error = None
            self.jobs = {job_id: job for job_id, job in self.jobs.items() if job_id in news.active}

    def hear(self, job: Mapping[str, Any]) -> None:
        """Take the state of a job."""
        job_id, status = str(job["job_id"]), str(job["status"])
        if status in ENDED:
            if self.jobs.pop(job_id, None) is not None:
                self.ended[status] = self.ended.get(status, 0) + 1
            return
        self.jobs.setdefault(job_id, WatchedJob(0, job_id, "")).hear(job)

    def count(self, status: str) -> int:
        """Return how many jobs have this status."""
        return sum(job.status == status for job in self.jobs.values())

    @property
    def rate(self) -> float:
        """Bytes per second of all running jobs."""
        return sum(job.rate or 0.0 for job in self.jobs.values())

    def fullest(self) -> tuple[Mapping[str, Any], float] | None:
        """Return the target that is closest to full and how full it is in percent, None if none says so."""
        fills = [(target, fill) for target in self.targets if (fill := fill_of(target)) is not None]
        return max(fills, key=lambda one: one[1], default=None)

    def state(self) -> str:
        """Return the host's state in a word."""
        if self.error is not None:
            return "no answer"
        if any(not target.get("healthy", True) for target in self.targets):
            return "target bad"
        return str(self.health.get("status", "..."))

    def body(self) -> dict[str, Any]:
        """Return all of it for ``--json``."""
        if self.error is not None:
            return {"error": "unreachable", "message": self.error}
        return {
            "health": self.health,
            "targets": list(self.targets),
            "running": self.count("running"),
            "queued": self.count("pending"),
            "bytes_per_second": round(self.rate),
            "jobs": [job.job for job in self.jobs.values()],
        }


def fill_of(target: Mapping[str, Any]) -> float | None:
    """Return how full a target is in percent: its space, or its thin pool's data or metadata if they are fuller."""
    fills = [float(value) for value in (target.get("thin_pool") or {}).values()]
    if target.get("size_bytes"):
        fills.append(100 * (1 - target.get("free_bytes", 0) / target["size_bytes"]))
    return max(fills, default=None)
