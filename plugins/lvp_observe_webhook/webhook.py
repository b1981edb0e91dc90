"""Puts changes into the outbox, and delivers them one after the other.

A change is in the outbox before the next one is handled. At the start the ends of the newest jobs are compared with
what was put in, so that one is not lost if the service was killed between a job's end and its message.
"""

from __future__ import annotations

import fnmatch
import json
import sqlite3
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import structlog
import trio

from lvp_observe_webhook.outbox import Message, Outbox
from lvp_observe_webhook.signing import BadSecretError, headers_of, key_of
from provisioner.contracts import HttpSender, Observer, ShieldExpiredError, read_secret, shielded
from provisioner.contracts.errors import ProvisionerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lvp_observe_webhook.settings import WebhookSettings
    from provisioner.contracts import BackEndContext, ChangeEvent, JobEvent

T = TypeVar("T")
log = structlog.get_logger(__name__)

# Seconds before each repeat of a message; the last one repeats.
PAUSES = (1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0)
# Seconds before any message is tried after a failure: a receiver that is down is not asked for each of thousands.
_REST, _LONGEST_REST = 0.5, 60.0
# Seconds until an outbox that could not be used is tried again.
_DISK_REST = 10.0
# Seconds to write to the outbox, also while the service stops; SQLite waits 2 s for a lock.
_WRITE = 10.0


class WebhookObserver(Observer):
    """Sends the changes whose kinds ``settings.events`` names."""

    def __init__(self, settings: WebhookSettings, context: BackEndContext) -> None:
        self._settings = settings
        self._name = context.name
        self._host = urlsplit(settings.url).netloc  # the url itself may be a secret
        self._outbox = Outbox(context.state_directory / f"webhook-{context.name}.sqlite", settings.max_waiting)
        self._sender = HttpSender(settings.options())
        self._thread = trio.CapacityLimiter(1)
        self._secrets = trio.CapacityLimiter(1)
        # Not in the outbox yet, such as while its disk is full.
        self._pending: dict[str, Message] = {}
        self._writing = trio.Lock()
        self._news = trio.Event()
        self._failures = 0

    async def job_changed(self, event: JobEvent) -> None:
        """Do nothing: ``changed`` gets every status."""

    async def changed(self, event: ChangeEvent) -> None:
        self._add([event])
        await self._write()

    async def run(self, ended: Sequence[ChangeEvent]) -> None:
        compared = False
        while True:
            self._news = trio.Event()  # before the look: nothing that comes after it is missed
            try:
                if not compared:
                    began = await self._in_thread(lambda: self._outbox.begin(time.time()))
                    self._add(one for one in ended if one.at >= began)
                    compared = True
                await self._write()
                await self._next()
            except OSError as error:
                log.error("a webhook waits for its outbox", webhook=self._name, reason=str(error))
                await trio.sleep(_DISK_REST)

    async def _next(self) -> None:
        """Try the next message, or wait for one."""
        found = await self._in_thread(self._outbox.next)
        if found is None:
            await self._news.wait()
            return
        message, due = found
        seconds = due - time.time()
        if seconds <= 0:
            await self._try(message)
            return
        with trio.move_on_after(min(seconds, PAUSES[-1])):
            await self._news.wait()

    async def aclose(self) -> None:
        await self._sender.aclose()
        await self._in_thread(self._outbox.close)

    def _add(self, events: Iterable[ChangeEvent]) -> None:
        for event in events:
            if any(fnmatch.fnmatchcase(event.kind, pattern) for pattern in self._settings.events):
                message = _message(event)
                self._pending[message.message_id] = message
        while len(self._pending) > self._settings.max_waiting:
            del self._pending[next(iter(self._pending))]

    async def _write(self) -> None:
        """Put pending messages into the outbox. Raises OSError; they stay pending then."""
        async with self._writing:
            messages = dict(self._pending)
            if not messages:
                return
            dropped = await self._in_thread(lambda: self._outbox.add(messages.values()))
            for message_id in messages:
                self._pending.pop(message_id, None)
        if dropped:
            log.error("the outbox of a webhook is full; it lost its oldest messages", webhook=self._name, count=dropped)
        self._news.set()

    async def _try(self, message: Message) -> None:
        reason = await self._send(message)
        now = time.time()
        if reason is None:
            self._failures = 0
            await self._in_thread(lambda: self._outbox.remove(message.message_id))
            return
        self._failures += 1
        if now - message.at > self._settings.give_up_after:
            log.error("a webhook was given up", webhook=self._name, message=message.message_id, reason=reason)
            await self._in_thread(lambda: self._outbox.remove(message.message_id))
        else:
            if self._failures == 1:
                log.warning("a webhook could not be delivered; it is retried", webhook=self._name, reason=reason)
            due = now + PAUSES[min(message.tries, len(PAUSES) - 1)]
            await self._in_thread(lambda: self._outbox.delay(message.message_id, due))
        await trio.sleep(min(_REST * 2 ** min(self._failures, 10), _LONGEST_REST))

    async def _send(self, message: Message) -> str | None:
        """Send a message; return why it was not accepted, None if it was."""
        try:
            secret = await trio.to_thread.run_sync(
                read_secret, self._settings.secret, limiter=self._secrets, abandon_on_cancel=True
            )
            headers = headers_of(key_of(secret), message.message_id, int(time.time()), message.body)
            status = await self._sender.post(self._settings.url, headers, message.body, self._settings.timeout)
        except BadSecretError as error:
            return str(error)
        except ProvisionerError as error:
            return error.message
        return None if 200 <= status < 300 else f"{self._host} answered with HTTP status {status}"

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Use the outbox. A write is finished even if the service stops meanwhile. Raises OSError."""
        try:
            with shielded("write to the outbox of a webhook", _WRITE):
                return await trio.to_thread.run_sync(work, limiter=self._thread)
        except (sqlite3.Error, ShieldExpiredError) as error:
            raise OSError(f"the outbox cannot be used: {error}") from error


def _message(event: ChangeEvent) -> Message:
    at = datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = {"type": event.kind, "timestamp": at, "data": event.data}
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Message(f"msg_{event.event_id}", text.encode(), event.at)
