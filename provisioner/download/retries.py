"""Repeats requests to an image source after temporary errors: how long to wait, ``Retry-After`` included."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

import structlog
import trio

from provisioner.contracts.errors import RemoteChangedError, SourceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
log = structlog.get_logger(__name__)

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0
# Seconds that a server may have a job wait in all with Retry-After. For longer the job would only occupy a worker.
_LONGEST_RETRY_AFTER = 180.0


def pause_after(failures: int, jitter: Callable[[], float] = random.random) -> float:
    """Return the seconds to wait after that many failures in a row: exponential, capped, with 50 to 100 % jitter."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (failures - 1))
    return float(longest * (0.5 + 0.5 * jitter()))


def pause_for(error: SourceError, failures: int, waited: float) -> float | None:
    """Return the seconds to wait after ``error``, as the server asks if it does; None if trying again is pointless.

    ``waited`` is the sum of the earlier pauses.
    """
    if not error.temporary or isinstance(error, RemoteChangedError):
        return None
    asked = getattr(error, "retry_after", None) or 0.0
    return None if asked and waited + asked > _LONGEST_RETRY_AFTER else max(pause_after(failures), asked)


async def with_retries(
    work: Callable[[], Awaitable[T]], attempts: int, waiting: Callable[[str | None], None] = lambda _: None
) -> T:
    """Call ``work`` until it succeeds, with growing pauses after temporary errors. Raises the last SourceError.

    ``waiting`` is called with the error's message before each pause, and with None at the end.
    """
    try:
        return await _with_retries(work, attempts, waiting)
    finally:
        waiting(None)


async def _with_retries(work: Callable[[], Awaitable[T]], attempts: int, waiting: Callable[[str | None], None]) -> T:
    waited = 0.0
    for failures in range(1, attempts):
        try:
            return await work()
        except SourceError as error:
            pause = pause_for(error, failures, waited)
            if pause is None:
                raise
            waited += pause
            waiting(error.message)
            log.warning("request to the image source failed, retrying", reason=error.message, pause=round(pause, 2))
        await trio.sleep(pause)
    return await work()
