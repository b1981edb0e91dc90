"""The job state machine, as a transition table.

A job is accepted as ``pending`` and waits for a worker, which makes it ``running``. It ends once, and an ended job
never changes again. After a restart, jobs found running are rolled back and either queued again (``retry``) or failed
(``fail``, or too many attempts). A shutdown rolls running jobs back and queues them again (``interrupt``). Cancelling
a running job is not a transition of its own: the job becomes ``cancelled`` when its rollback is done. A pending job
fails at a restart if a later job has made its volume since.

        accept             start            complete
    o ---------> pending ---------> running ---------> completed
                 | |  ^                | |    fail
                 | |  |  interrupt     | +-----------> failed   (also from pending: overtaken)
          cancel | |  +----------------+      cancel
                 +-+------------------------+--------> cancelled
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """The status of a job."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Return whether the status is final."""
        return self in {Status.COMPLETED, Status.FAILED, Status.CANCELLED}


class Event(StrEnum):
    """An event that changes a job's status."""

    START = "start"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    INTERRUPT = "interrupt"


TRANSITIONS: dict[tuple[Status, Event], Status] = {
    (Status.PENDING, Event.START): Status.RUNNING,
    (Status.PENDING, Event.CANCEL): Status.CANCELLED,
    (Status.PENDING, Event.FAIL): Status.FAILED,
    (Status.RUNNING, Event.COMPLETE): Status.COMPLETED,
    (Status.RUNNING, Event.FAIL): Status.FAILED,
    (Status.RUNNING, Event.CANCEL): Status.CANCELLED,
    (Status.RUNNING, Event.INTERRUPT): Status.PENDING,
}


class ImpossibleTransitionError(Exception):
    """The event cannot happen to a job in that status: a bug."""


def after(status: Status, event: Event) -> Status:
    """Return the status that follows. Raises ImpossibleTransitionError."""
    try:
        return TRANSITIONS[status, event]
    except KeyError:
        raise ImpossibleTransitionError(f"{event} cannot happen to a {status} job") from None
