"""Tells observers and the readers of the feed what changes, without waiting for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts import JobEvent
from provisioner.jobs.feed import Feed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.cache import Entry
    from provisioner.contracts import Observer

log = structlog.get_logger(__name__)

# The most events queued for an observer. A slow one loses the newest, so that memory stays bounded.
_BACKLOG = 1000


class Notifier:
    """One queue and one task for each observer, and the feed."""

    def __init__(self, observers: Mapping[str, Observer]) -> None:
        self._observers = observers
        self.feed = Feed()
        self._queues: dict[str, trio.MemorySendChannel[JobEvent]] = {}

    def notify(self, event: JobEvent) -> None:
        """Queue the event for every observer."""
        for name, queue in self._queues.items():
            try:
                queue.send_nowait(event)
            except trio.WouldBlock:
                log.warning("an observer is too slow; it lost an event", observer=name, job_id=event.job_id)

    def image_changed(self, what: str, entry: Entry) -> None:
        """Add to the feed that a cached image was ``added``, ``removed``, ``pinned`` or ``unpinned``."""
        self.feed.publish(f"cache.{what}", entry)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            for name, observer in self._observers.items():
                self._queues[name], receive = trio.open_memory_channel[JobEvent](_BACKLOG)
                nursery.start_soon(self._deliver, name, observer, receive)
            task_status.started()
            await trio.sleep_forever()

    async def _deliver(self, name: str, observer: Observer, events: trio.MemoryReceiveChannel[JobEvent]) -> None:
        async for event in events:
            try:
                await observer.job_changed(event)
            except Exception as error:  # noqa: BLE001 - the boundary: an observer cannot hold up a job
                log.warning("an observer failed", observer=name, reason=str(error))
