"""Tells observers and the readers of the feed what changes, without waiting for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts import ChangeEvent, JobEvent, Observer
from provisioner.contracts.errors import UnavailableError
from provisioner.jobs.change_events import change_event
from provisioner.jobs.feed import Feed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from provisioner.cache import Entry

log = structlog.get_logger(__name__)

# The most events queued for an observer. A slow one loses the newest, so that memory stays bounded.
_BACKLOG = 1000
# Seconds until the history is asked again at the start.
_RETRY = 5.0


class Notifier:
    """One queue and one task for each observer, and the feed."""

    def __init__(self, observers: Mapping[str, Observer]) -> None:
        self._observers = observers
        self.feed = Feed()
        self._queues: dict[str, trio.MemorySendChannel[JobEvent | ChangeEvent]] = {}
        # Most observers look at stages of jobs only.
        self._of_changes = {name for name, one in observers.items() if type(one).changed is not Observer.changed}
        if self._of_changes:
            self.feed.on_change = self._changed

    def notify(self, event: JobEvent) -> None:
        """Queue the event for every observer."""
        for name in self._queues:
            self._queue(name, event, event.job_id)

    def image_changed(self, what: str, entry: Entry) -> None:
        """Add to the feed that a cached image was ``added``, ``removed``, ``pinned`` or ``unpinned``."""
        self.feed.publish(f"cache.{what}", entry)

    def _changed(self, kind: str, subject: object) -> None:
        event = change_event(kind, subject)
        for name in self._of_changes & self._queues.keys():
            if event is not None:
                self._queue(name, event, event.event_id)

    def _queue(self, name: str, event: JobEvent | ChangeEvent, event_id: str) -> None:
        try:
            self._queues[name].send_nowait(event)
        except trio.WouldBlock:
            log.warning("an observer is too slow; it lost an event", observer=name, job_id=event_id)

    async def run(
        self,
        ended: Callable[[], Awaitable[Sequence[ChangeEvent]]] | None = None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled. ``ended`` returns the ends of the newest jobs, for observers to compare."""
        async with trio.open_nursery() as nursery:
            for name, observer in self._observers.items():
                self._queues[name], receive = trio.open_memory_channel[JobEvent | ChangeEvent](_BACKLOG)
                nursery.start_soon(self._deliver, name, observer, receive)
                if type(observer).run is not Observer.run:
                    nursery.start_soon(self._run, name, observer, ended)
            task_status.started()
            await trio.sleep_forever()

    async def _deliver(
        self, name: str, observer: Observer, events: trio.MemoryReceiveChannel[JobEvent | ChangeEvent]
    ) -> None:
        async for event in events:
            try:
                if isinstance(event, JobEvent):
                    await observer.job_changed(event)
                else:
                    await observer.changed(event)
            except Exception as error:  # noqa: BLE001 - the boundary: an observer cannot hold up a job
                log.warning("an observer failed", observer=name, reason=str(error))

    async def _run(
        self, name: str, observer: Observer, ended: Callable[[], Awaitable[Sequence[ChangeEvent]]] | None
    ) -> None:
        while True:
            try:
                await observer.run(() if ended is None else await ended())
            except UnavailableError as error:  # of the history: the observer must not start without it
                log.warning("an observer waits for the history", observer=name, reason=error.message)
                await trio.sleep(_RETRY)
            except Exception as error:
                log.error("an observer has stopped its work", observer=name, exc_info=error)
                return
            else:
                return
