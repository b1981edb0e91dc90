"""Notices image sources whose servers do not answer. Sends nothing itself: it watches the requests of jobs."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import trio

from provisioner.contracts.errors import RemoteUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from provisioner.contracts import ImageSource, ImageStream, ImageUrl, RemoteImage

# Seconds after which a request without an answer counts as hung; the built-in sources give up after 40.
HUNG_AFTER = 30.0
# Seconds that a failure is remembered if no further request is made.
REMEMBERED = 900.0


class SourceHealth:
    """A source that remembers whether its server answers. Everything else is the wrapped source's own."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._waiting: dict[object, float] = {}
        self._failed_at: float | None = None
        self._failures = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def problem(self) -> str | None:
        """Return what is wrong, without any url; None if the server answered or was not asked lately."""
        now = trio.current_time()
        waited = now - min(self._waiting.values(), default=now)
        if waited >= HUNG_AFTER:
            return f"no answer for {waited:.0f} s"
        if self._failed_at is None or now - self._failed_at >= REMEMBERED:
            return None
        times = "once" if self._failures == 1 else f"{self._failures} times in a row"
        return f"its server did not answer {times}, last {now - self._failed_at:.0f} s ago; see the log"

    async def stat(self, url: ImageUrl) -> RemoteImage:
        """Ask the server for size and version, as the source does."""
        with self._watched():
            return await self._source.stat(url)

    @asynccontextmanager
    async def open(
        self, url: ImageUrl, start: int = 0, stop: int | None = None, version: str | None = None
    ) -> AsyncIterator[ImageStream]:
        """Open bytes of an image, as the source does. A transfer that breaks counts as a failure too."""
        token = object()
        with self._judged():
            self._waiting[token] = trio.current_time()
            try:
                async with self._source.open(url, start, stop, version) as stream:
                    del self._waiting[token]
                    self._answered()
                    yield stream
            finally:
                self._waiting.pop(token, None)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        token = object()
        with self._judged():
            self._waiting[token] = trio.current_time()
            try:
                yield
            finally:
                del self._waiting[token]

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Note a failure or an answer. An error other than RemoteUnavailableError is an answer; a cancel is none."""
        try:
            yield
        except RemoteUnavailableError:
            self._failed_at = trio.current_time()
            self._failures += 1
            raise
        except Exception:
            self._answered()
            raise
        else:
            self._answered()

    def _answered(self) -> None:
        self._failed_at, self._failures = None, 0
