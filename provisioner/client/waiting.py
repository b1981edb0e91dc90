"""Waiting for a job: how long to pause, and how it ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from provisioner.client.errors import ApiError, JobCancelledError, JobFailedError, UnreachableError, WaitTimeoutError

if TYPE_CHECKING:
    from provisioner.client.types import Job

ENDED = frozenset({"completed", "failed", "cancelled"})
# Seconds. A job with a cached image ends in a fraction of a second; a long one tolerates a delay of one second.
FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 0.1, 1.0, 1.3
# Seconds, while the server is unreachable.
FIRST_RETRY, LONGEST_RETRY = 0.5, 5.0


@dataclass
class Waiting:
    """One wait for a job: at most ``timeout`` seconds in all, and ``patience`` seconds without the server.

    After each look, ``seen`` or ``missed`` returns the seconds to pause before the next one.
    """

    timeout: float | None
    patience: float
    began: float = field(default_factory=time.monotonic)
    _away_since: float | None = None
    _pause: float = FIRST_PAUSE
    _retry: float = FIRST_RETRY

    def seen(self, job: Job) -> float:
        """Note the job's state. Raises WaitTimeoutError."""
        self._away_since, self._retry = None, FIRST_RETRY
        pause, self._pause = self._pause, min(self._pause * GROWTH, LONGEST_PAUSE)
        return self._limited(pause, job)

    def missed(self, error: ApiError | UnreachableError, job: Job) -> float:
        """Note that there was no answer. Raises the error if it is final, or has lasted too long; WaitTimeoutError."""
        now = time.monotonic()
        self._away_since = self._away_since or now
        if (isinstance(error, ApiError) and not error.temporary) or now - self._away_since > self.patience:
            raise error
        pause, self._retry = self._retry, min(self._retry * 2, LONGEST_RETRY)
        return self._limited(pause, job)

    def _limited(self, pause: float, job: Job) -> float:
        if self.timeout is None:
            return pause
        left = self.began + self.timeout - time.monotonic()
        if left <= 0:
            words = f"job {job['job_id']} has not ended within {self.timeout:g} s; it continues on the server"
            raise WaitTimeoutError(words, job)
        return min(pause, left)


def completed(job: Job) -> Job:
    """Return a job that has completed. Raises JobFailedError, JobCancelledError."""
    if job["status"] == "failed":
        raise JobFailedError(job.get("error", "no reason given"), job)
    if job["status"] == "cancelled":
        raise JobCancelledError(f"job {job['job_id']} was cancelled and rolled back", job)
    return job
