# SPDX-License-Identifier: MIT
"""Jobs of the service: submitting one, finding one that is active, and waiting for its end."""

from __future__ import annotations

import time

from .api import ApiError

# Seconds between two looks at a job: a clone ends in a fraction of a second, a download takes minutes.
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.2, 3.0, 1.3
# Seconds for which a server may be away, such as during a restart or an update.
PATIENCE = 300


class JobError(Exception):
    """A job that did not complete, or whose end was not seen. ``job`` is its last known state."""

    def __init__(self, message, error, job):
        super().__init__(message)
        self.message = message
        self.error = error
        self.job = job

    def as_result(self):
        """Return the error as fields of a module's result."""
        return {"msg": self.message, "error": self.error, "job": self.job}


class Deadline:
    """The time until which a module may wait, ``seconds`` from now."""

    def __init__(self, seconds):
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def pause(self, seconds):
        """Sleep, but not beyond the end. Return whether time is left."""
        left = self._end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(seconds, left))
        return True


def active(api, volume_name, target, default_target):
    """Return the pending or running job for a volume, or None. Raises ApiError.

    ``default_target`` returns the target of a job that named none.
    """
    # In the order of a job's life, so that one that starts in between is seen.
    for status in ("pending", "running"):
        for job in api.listed("jobs", "jobs", status=status, volume_name=volume_name):
            if ((job.get("request") or {}).get("target") or default_target()) == target:
                return job
    return None


def submit(api, path, body, deadline):
    """Submit a job and return its id; wait while the queue is full or the server restarts. Raises ApiError."""
    pause = 1.0
    while True:
        try:
            return api.submit(*path, body=body)["job_id"]
        except ApiError as error:
            if error.status not in (429, 503) or not deadline.pause(pause):
                raise
        pause = min(pause * 2, 30.0)


def wait(api, job_id, deadline, patience=PATIENCE):
    """Return the job when it has completed. Raises JobError, ApiError."""
    job, away_since, pause = {"job_id": job_id}, None, _FIRST_PAUSE
    while True:
        try:
            job = api.get("jobs", job_id)
            away_since = None
        except ApiError as error:
            away_since = away_since or time.monotonic()
            if not error.temporary or time.monotonic() - away_since > patience:
                raise JobError(
                    "%s; job %s continues on the server" % (error.message, job_id), error.error, job
                ) from error
        status = job.get("status")
        if status == "completed":
            return job
        if status == "failed":
            raise JobError("job %s failed: %s" % (job_id, job.get("error", "no reason given")), "job failed", job)
        if status == "cancelled":
            raise JobError("job %s was cancelled and rolled back" % job_id, "job cancelled", job)
        if not deadline.pause(pause):
            away = ", and the server does not answer" if away_since else ""
            words = "job %s has not ended within %s s%s; it continues on the server"
            raise JobError(words % (job_id, deadline.seconds, away), "timeout", job)
        pause = min(pause * _GROWTH, _LONGEST_PAUSE)
