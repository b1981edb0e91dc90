"""The routes of server-sent events: jobs, volumes and cached images as they change.

A stream begins with a ``snapshot``, unless ``Last-Event-ID`` names a change after which all are still kept. It ends
with an ``end`` that says why. ``jobs.feed`` has the changes and who reads them.
"""

from __future__ import annotations

from contextlib import ExitStack
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from quart import Response, g, request
from quart.wrappers.response import ResponseBody

from provisioner.api import responses
from provisioner.auth.audit_events import LOCAL, group_of
from provisioner.auth.authenticator import check_role
from provisioner.cache import Entry
from provisioner.contracts.errors import ForbiddenError, UnauthorizedError, UnavailableError
from provisioner.jobs import Job, JobFilter
from provisioner.tls.peer_certificate import peer_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from quart import Blueprint
    from quart_trio import QuartTrio

    from provisioner.api.services import Services
    from provisioner.jobs.feed import Change, Feed, JobProgress, Reader
    from provisioner.pipeline.progress import Snapshot

CONTENT_TYPE = "text/event-stream"
STOPPING = "service.stopping"
_HEADERS = {"X-Accel-Buffering": "no"}  # nginx passes each event on at once
# Seconds without an event until a comment is sent: half of what proxies and clients commonly wait.
HEARTBEAT = 15.0
# Seconds between two checks of the caller's credential while nothing happens.
_RECHECK = 5.0
# Jobs of a snapshot beside the active ones, newest first, and the most in all.
_RECENT, _MOST = 100, 1000
_RENDERED_AT_ONCE = 100
# Milliseconds until a browser connects again.
_RETRY = b"retry: 2000\n\n"

_at_end: ContextVar[ExitStack] = ContextVar("at_end")


def release_at_end(app: QuartTrio) -> None:
    """Release what a request holds when it is over, also if its client left before the response began."""
    inner = app.asgi_app

    async def outer(*args: Any) -> None:
        with ExitStack() as held:
            _at_end.set(held)
            await inner(*args)

    app.asgi_app = outer  # type: ignore[method-assign,assignment]


def add_events(api: Blueprint, services: Services) -> None:
    """Add the routes, and apply the configured limits to the feed."""
    feed, server = services.notifier.feed, services.config.server
    feed.most_readers, feed.most_per_group = server.max_event_streams, server.max_event_streams_per_address
    feed.on_readers = services.metrics.event_readers.set
    feed.on_dropped = lambda kind, count: services.metrics.events_dropped.labels(kind).inc(count)

    @api.get("/events", provide_automatic_options=False)
    async def watch_events() -> Response:
        resumed = feed.position(request.headers.get("Last-Event-ID", ""))
        reader = _admit(services, feed.head if resumed is None else resumed, None)
        first = b"" if resumed is not None else await _snapshot(services, feed.id_of(reader.position))
        return _stream(_Body(services, reader, first, _credential_check(services)))

    @api.get("/jobs/<job_id>/events", provide_automatic_options=False)
    async def watch_job(job_id: str) -> Response:
        resumed, head = feed.position(request.headers.get("Last-Event-ID", "")), feed.head
        job, snapshot = await services.supervisor.find(job_id)
        if job.status.ended and resumed is not None and not _changed_since(feed, resumed, job_id):
            return Response(b"", 204)  # tells a browser not to connect again
        reader = _admit(services, head if resumed is None else resumed, job_id)
        body = {"jobs": [responses.job_body(job, snapshot, g.principal.id)], "active": int(not job.status.ended)}
        first = _event("snapshot", body, feed.id_of(head)) if resumed is None else b""
        return _stream(_Body(services, reader, first, _credential_check(services), ended=job.status.ended))


def _changed_since(feed: Feed, number: int, job_id: str) -> bool:
    return any(change.job_id == job_id for change in feed.changes(number, job_id))


def _admit(services: Services, position: int, job_id: str | None) -> Reader:
    """Return a reader, which is released when the request is over. Raises as ``Feed.reader``."""
    group = None if g.address == LOCAL else group_of(g.address)
    return _at_end.get().enter_context(services.notifier.feed.reader(group, position, job_id))


def _stream(body: ResponseBody) -> Response:
    if request.method == "HEAD":
        return Response(b"", 200, _HEADERS, content_type=CONTENT_TYPE)
    response = Response(body, 200, _HEADERS, content_type=CONTENT_TYPE)
    response.timeout = None
    return response


def _credential_check(services: Services) -> Callable[[], None]:
    """Return a function that raises UnauthorizedError or ForbiddenError once the caller may not read any more."""
    certificate, headers, principal_id = peer_certificate(), request.headers, g.principal.id

    def check() -> None:
        principal = services.authenticator.identify(certificate, headers)
        check_role(principal, "viewer")
        if principal.id != principal_id:
            raise UnauthorizedError("the credential now stands for another caller")

    return check


async def _snapshot(services: Services, event_id: str) -> bytes:
    """Return the event with the active and the newest jobs. Raises UnavailableError if the store cannot be read."""
    active, reader = services.supervisor.active(), g.principal.id
    recent, _ = await services.store.page(JobFilter(), 0, _RECENT)
    shown: dict[str, tuple[Job, Snapshot | None]] = {job.job_id: (job, None) for job in recent if job.status.ended}
    shown |= {job.job_id: (job, snapshot) for job, snapshot in active[:_MOST]}
    jobs = sorted(shown.values(), key=lambda one: one[0].created_at, reverse=True)
    bodies = []
    for start in range(0, len(jobs), _RENDERED_AT_ONCE):
        bodies += [responses.job_body(*one, reader) for one in jobs[start : start + _RENDERED_AT_ONCE]]
        await trio.lowlevel.checkpoint()
    return _event("snapshot", {"jobs": bodies, "active": len(active)}, event_id)


class _Body(ResponseBody):
    """The events of one reader, from ``first`` to the ``end``."""

    def __init__(
        self, services: Services, reader: Reader, first: bytes, check: Callable[[], None], *, ended: bool = False
    ) -> None:
        self._services, self._reader, self._check = services, reader, check
        self._principal_id: str = g.principal.id
        # One who connects while the service stops has not seen the change that says so.
        is_stopping = bool(first) and services.supervisor.draining
        self._next = _RETRY + first + (_event(STOPPING, {}) if is_stopping else b"")
        self._job_ended = ended and bool(first)
        self._over = False
        self._sent_at = self._checked_at = trio.current_time()

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self

    async def __aexit__(self, kind: type, error: BaseException, trace: TracebackType) -> None:
        """Do nothing: the request's end releases the reader."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Return what there is to send, as soon as there is something."""
        await trio.lowlevel.checkpoint()  # a socket with room for more does not let other tasks run
        sending, self._next = self._next, b""
        while not sending:
            if self._over:
                raise StopAsyncIteration
            sending = self._take()
            if not sending:
                if trio.current_time() - self._sent_at >= HEARTBEAT:
                    sending = b": alive\n\n"
                else:
                    await self._reader.wait(_RECHECK)
        self._sent_at = trio.current_time()
        return sending

    def _take(self) -> bytes:
        """Return the next events, or nothing if there are none."""
        if self._job_ended:
            return self._end("job ended", "the job has ended")
        try:
            changes, progress = self._reader.take()
        except UnavailableError as error:
            return self._end("too slow", error.message)
        now = trio.current_time()
        if changes or progress or now - self._checked_at >= _RECHECK:
            self._checked_at = now
            try:
                self._check()
            except (UnauthorizedError, ForbiddenError) as error:
                return self._end("access lost", error.message)
        if self._reader.job_id is not None:
            self._job_ended = any(isinstance(one.subject, Job) and one.subject.status.ended for one in changes)
        text = b"".join([*map(self._render, changes), *map(self._render_progress, progress)])
        if not text and self._services.notifier.feed.closed:
            return self._end("service stopped", "the service has stopped; connect again after its restart")
        return text

    def _end(self, reason: str, message: str) -> bytes:
        self._over = True
        return _event("end", {"reason": reason, "message": message})

    def _render(self, change: Change) -> bytes:
        """Return the event; readers of the same audience share it."""
        job = change.subject if isinstance(change.subject, Job) else None
        audience = job is not None and job.principal == self._principal_id
        if audience not in change.rendered:
            body = change.subject
            if job is not None:
                body = responses.job_body(job, change.snapshot, self._principal_id)
            elif isinstance(body, Entry):
                kept = body.sha256 in self._services.cache.prewarmed()
                body = responses.image_body(body, self._services.cache.path(body), prewarmed=kept)
            event_id = self._services.notifier.feed.id_of(change.number)
            change.rendered[audience] = _event(change.kind, {} if body is None else body, event_id)
        return change.rendered[audience]

    def _render_progress(self, progress: JobProgress) -> bytes:
        """Return the event. It has no id: a client resumes after the last change."""
        audience = progress.job.principal == self._principal_id
        if audience not in progress.rendered:
            body = responses.job_body(progress.job, progress.snapshot, self._principal_id)
            progress.rendered[audience] = _event("job.progress", body)
        return progress.rendered[audience]


def _event(kind: str, body: object, event_id: str | None = None) -> bytes:
    """Return a server-sent event. JSON has no line breaks, so the data is one line."""
    named = b"" if event_id is None else f"id: {event_id}\n".encode()
    return b"%sevent: %s\ndata: %s\n\n" % (named, kind.encode(), msgspec.json.encode(body))
