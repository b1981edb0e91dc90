"""The life of a job, as a table.

A job is accepted as ``pending`` and waits for a slot. In its slot it is ``running``. From there it ends once, and
an ended job never changes again. A restart of the daemon finds jobs that were running: what they had made is rolled
back, and they wait anew (``retry``) or have failed (``fail``, or too many attempts). A shutdown does the same ahead
of time (``interrupt``). Cancelling a running job is not a transition of its own: the job ends as ``cancelled`` when
its rollback has ended. A restart may find a waiting job whose volume a later job has made since: it fails.

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
    """Where a job stands."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in {Status.COMPLETED, Status.FAILED, Status.CANCELLED}


class Event(StrEnum):
    """What happens to a job."""

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
    """A bug: the event cannot happen to a job in that status."""


def after(status: Status, event: Event) -> Status:
    """The status that follows. Raises ImpossibleTransitionError."""
    try:
        return TRANSITIONS[status, event]
    except KeyError:
        raise ImpossibleTransitionError(f"{event} cannot happen to a {status} job") from None
