"""The errors of the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from provisioner.client.types import Job

# Temporary states of the server, or of a proxy in front of it.
TEMPORARY = frozenset({429, 502, 503, 504})


class ClientError(Exception):
    """Base of the client's errors; ``message`` is one or two sentences for people."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class SettingsError(ClientError):
    """The address or a credential cannot be used. Nothing was sent."""


class ApiError(ClientError):
    """An error response. ``status`` is its HTTP status, ``category`` the field ``error``, ``message`` the server's.

    ``reason`` is a heading of docs/troubleshooting.md; empty if the response is not the service's.
    ``retry_after`` is in seconds, None if the server does not say. ``request_id`` is the one in the server's log.
    """

    def __init__(
        self,
        message: str,
        status: int,
        category: str = "",
        *,
        reason: str = "",
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.category = category
        self.reason = reason
        self.retry_after = retry_after
        self.request_id = request_id

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in TEMPORARY


class UnreachableError(ClientError):
    """No response. ``lost``: the request may have arrived. A later try may succeed."""

    def __init__(self, message: str, *, lost: bool) -> None:
        super().__init__(message)
        self.lost = lost


class JobError(ClientError):
    """A job did not complete; ``job`` is its last known state."""

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message)
        self.job = job


class JobFailedError(JobError):
    """The job failed and is rolled back. The message is the job's own."""


class JobCancelledError(JobError):
    """The job was cancelled and is rolled back."""


class WaitTimeoutError(JobError):
    """The job has not ended in time. It continues on the server."""
