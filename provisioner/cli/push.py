"""``lvp image push``: hashes a file, then uploads it; goes on by itself where a broken connection ended."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from provisioner.cli.client import Answer, ApiError
from provisioner.cli.connection import path
from provisioner.cli.exit_status import CliError, ExitStatus
from provisioner.cli.formatting import printable, span
from provisioner.cli.progress import Bar, Lines
from provisioner.cli.transport import UnreachableError
from provisioner.client.waiting import FIRST_RETRY, LONGEST_RETRY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from provisioner.cli.client import Client
    from provisioner.cli.polling import RetryWindow
    from provisioner.cli.progress import Display

_READ = 256 * 1024
# Seconds between two updates of the display.
_UPDATE = 0.2
# Seconds between two questions while another request uploads the same image.
_POLL = 1.0
# What a later request may repair, besides temporary errors: the client was too slow, or another request was faster.
_WORTH_ANOTHER = {408, 409}
_UNPROCESSABLE = 422


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An open image file. The server may have bytes before ``start`` already."""

    fd: int
    name: str
    size: int
    report: Callable[[str, int], None]
    start: int = 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the file from ``start`` on, as a request's body."""
        return self._read(self.start, "uploading")

    def _read(self, position: int, stage: str) -> Iterator[bytes]:
        while position < self.size:
            self.report(stage, position)
            data = os.pread(self.fd, min(_READ, self.size - position), position)
            if not data:
                raise CliError(f"{printable(self.name)} was truncated during the upload")
            yield data
            position += len(data)
        self.report(stage, position)

    def digest(self) -> str:
        """Return the file's digest as ``sha256:HEX``."""
        digest = hashlib.sha256()
        for data in self._read(0, "hashing"):
            digest.update(data)
        return f"sha256:{digest.hexdigest()}"

    def rest(self, start: int) -> ImageFile:
        """Return the file without its first ``start`` bytes."""
        return ImageFile(self.fd, self.name, self.size, self.report, start)


def push(
    client: Client, file: str, options: Mapping[str, str], window: RetryWindow, *, as_json: bool
) -> tuple[Answer, str]:
    """Upload ``file``; return the server's answer and the image's url for jobs. Raises CliError.

    ``options``: parameters of the request besides the checksum; without a name, the file's is used.
    """
    name = options.get("name") or default_name(file)
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _showing(as_json=as_json) as show:
            image = ImageFile(fd, file, os.fstat(fd).st_size, _Reporter(show, os.fstat(fd).st_size))
            if not image.size:
                raise CliError(f"{printable(file)} is empty", ExitStatus.USAGE)
            answer = _Upload(client, image, image.digest(), {**options, "name": name}, window).run()
    except KeyboardInterrupt:
        again = f"lvp image push {printable(file)}"
        click.echo(f"\nStopped. The server keeps what has arrived for a day: {again} goes on from there.", err=True)
        raise SystemExit(ExitStatus.INTERRUPTED) from None
    finally:
        os.close(fd)
    return answer, str(answer.data["image_url"])


def default_name(file: str) -> str:
    """Return the name of an image for the path of its file."""
    return re.sub(r"^[._-]+", "", re.sub(r"[^A-Za-z0-9._-]+", "_", os.path.basename(file)))[:200] or "image"  # noqa: PTH119


class _Upload:
    """One upload, in as many requests as it takes."""

    def __init__(
        self, client: Client, image: ImageFile, digest: str, options: Mapping[str, str], window: RetryWindow
    ) -> None:
        self._client, self._image, self._digest, self._window = client, image, digest, window
        self._options = options
        self._offset = -1  # how much the server has; -1 before the first answer
        self._away_since: float | None = None
        self._said: str | None = None
        self._started_over = False

    def run(self) -> Answer:
        pause = FIRST_RETRY
        while True:
            try:
                start = self._ask()
                if start is not None:
                    return self._send(start)
                error, wait = None, _POLL
            except (ApiError, UnreachableError) as caught:
                error, wait = caught, pause
                if not self._may_go_on(caught):
                    raise
            if self._patience_is_over():
                raise error or CliError("another request still uploads this image; try again later")
            self._say(error.cause if error is not None else None)
            self._window.sleep(wait)
            pause = min(pause * 2, LONGEST_RETRY)

    def _ask(self) -> int | None:
        """Return where to go on; None while another request uploads the image."""
        query: dict[str, str | int] = {"name": self._options["name"], "size": self._image.size}
        state = self._client.get(path("cache", "images", self._digest, "upload"), query).data
        if state["offset"] != self._offset:
            self._offset, self._away_since = state["offset"], None
        return None if state["status"] == "uploading" else self._offset

    def _send(self, start: int) -> Answer:
        size = self._image.size
        part = f"bytes {start}-{size - 1}/{size}" if start < size else f"bytes */{size}"
        query = {"checksum": self._digest, **self._options}
        return self._client.upload(path("cache", "images"), query, part, self._image.rest(start), size - start)

    def _may_go_on(self, error: ApiError | UnreachableError) -> bool:
        if self._offset < 0:  # the first request must succeed
            return False
        if isinstance(error, ApiError) and error.code == _UNPROCESSABLE and self._offset and not self._started_over:
            # What the server had may have been the beginning of a file that has changed since.
            self._started_over = True
            return True
        return error.temporary or (isinstance(error, ApiError) and error.code in _WORTH_ANOTHER)

    def _patience_is_over(self) -> bool:
        """Whether the server has not received anything for too long."""
        now = self._window.now()
        if self._away_since is None:
            self._away_since = now
        return now - self._away_since >= self._window.limit

    def _say(self, cause: str | None) -> None:
        """Say once why the upload waits; ``cause`` is None while another request uploads the image."""
        words = "waiting for another upload of this image"
        if cause is not None:
            words = f"upload interrupted, trying to go on for {span(self._window.limit)} ({cause})"
        if words != self._said:
            self._said = words
            click.echo(printable(words), err=True)


class _Reporter:
    """Shows the progress a few times per second."""

    def __init__(self, display: Display | None, size: int, now: Callable[[], float] = time.monotonic) -> None:
        self._display, self._size, self._now = display, size, now
        self._next = 0.0

    def __call__(self, stage: str, done: int) -> None:
        if self._display is None or (self._now() < self._next and done < self._size):
            return
        self._next = self._now() + _UPDATE
        progress = {"stage": stage, "bytes_processed": done, "bytes_total": self._size}
        self._display.show(Answer("", {"status": "running", "progress": progress}))


@contextmanager
def _showing(*, as_json: bool) -> Iterator[Display | None]:
    """Provide a bar on a terminal, lines on standard error otherwise; nothing with ``--json``."""
    if as_json:
        yield None
        return
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM") not in {"dumb", "unknown"}
    display: Display = Bar() if is_terminal else Lines(err=True)
    with display:
        yield display
