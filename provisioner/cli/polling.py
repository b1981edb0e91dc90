"""Polling of a job until it ends, with retries while the server is unreachable."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from provisioner.cli.client import ApiError
from provisioner.cli.connection import path
from provisioner.cli.formatting import printable, span
from provisioner.cli.transport import UnreachableError
from provisioner.client.waiting import ENDED, FIRST_PAUSE, FIRST_RETRY, GROWTH, LONGEST_PAUSE, LONGEST_RETRY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from provisioner.cli.client import Answer, Client

STOPPING = "server is stopping; the job ends in time, or runs again after the restart"
# Seconds between two questions whether the server is stopping: while it stops, it still answers for its jobs.
READY_EVERY = 5.0


@dataclass(frozen=True, slots=True)
class RetryWindow:
    """How many seconds to retry when the server stops answering, and the clock to use."""

    limit: float
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def poll(client: Client, job_id: str, patience: RetryWindow, known: Answer | None = None) -> Iterator[Answer]:
    """Yield the job at each change after what is ``known``, until it has ended.

    The first request must succeed; later ones are retried. Raises ApiError or UnreachableError.
    """
    answer = known or client.get(path("jobs", job_id))
    if known is None:
        yield answer
    pause = FIRST_PAUSE
    stopping = _StopNotice(client, patience)
    while answer.data.get("status") not in ENDED:
        patience.sleep(pause)
        pause = min(pause * GROWTH, LONGEST_PAUSE)
        latest = poll_once(client, job_id, patience)
        if latest.data != answer.data:
            yield latest
        answer = latest
        if answer.data.get("status") not in ENDED:
            stopping.look()


class _StopNotice:
    """Tells the user once per stop that the server is stopping."""

    def __init__(self, client: Client, window: RetryWindow) -> None:
        self._client, self._window = client, window
        self._looked = window.now()
        self._said = False

    def look(self) -> None:
        """Ask the server, if it was not asked lately."""
        if self._window.now() - self._looked < READY_EVERY:
            return
        self._looked = self._window.now()
        try:
            self._client.get("/readyz")
            is_stopping = False
        except (ApiError, UnreachableError) as error:
            is_stopping = _is_stopping(error)
        if is_stopping and not self._said:
            click.echo(STOPPING, err=True)
        self._said = is_stopping


def poll_once(client: Client, job_id: str, patience: RetryWindow) -> Answer:
    """Return the job; retry while the server is unreachable. Raises ApiError or UnreachableError."""
    away_since = None
    reported = None
    pause = FIRST_RETRY
    while True:
        try:
            return client.get(path("jobs", job_id))
        except (ApiError, UnreachableError) as error:
            if not error.temporary:
                raise
            if away_since is None:
                away_since = patience.now()
            elif patience.now() - away_since >= patience.limit:
                raise
            state = "server is stopping" if _is_stopping(error) else "server not answering"
            if state != reported:
                reported = state
                left = span(max(0.0, away_since + patience.limit - patience.now()))
                click.echo(
                    printable(f"{state}, retrying for {left}; the job continues there ({error.cause})"), err=True
                )
        patience.sleep(pause)
        pause = min(pause * 2, LONGEST_RETRY)


def _is_stopping(error: ApiError | UnreachableError) -> bool:
    """Return whether the service itself answers that it is stopping."""
    said = ("the service is stopping", "the service is shutting down")  # to a change; on /readyz
    return isinstance(error, ApiError) and error.code == 503 and any(words in error.message for words in said)
