"""The cloud-init images of jobs that have not ended, one file each, readable by the service alone.

A job that runs again after a restart needs its data. It is not in the job store, which outlives the job by days.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import structlog
import trio

from provisioner.contracts import ShieldExpiredError, pwrite_all, shielded
from provisioner.contracts.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")
log = structlog.get_logger(__name__)

# Seconds to write or remove a file; a thread that hangs on a frozen disk is abandoned then.
_TIMEOUT = 10.0


class SeedFiles:
    """The files in ``folder``, which is created when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._send, self._receive = trio.open_memory_channel[str](10_000)

    def path(self, job_id: str) -> Path:
        """Return where the image of a job is."""
        return self._folder / f"{job_id}.iso"

    async def write(self, job_id: str, make_image: Callable[[], bytes]) -> None:
        """Make and store the image, even if the caller is cancelled.

        Raises UnavailableError if it is not stored in time.
        """
        try:
            with shielded("store the cloud-init data", _TIMEOUT):
                await self._in_thread(lambda: self._write(self.path(job_id), make_image()))
        except OSError as error:
            raise UnavailableError(f"the cloud-init data cannot be stored: {error.strerror}") from error

    async def remove(self, job_id: str) -> None:
        """Remove the image of a job, even if the caller is cancelled. If that fails, the next start retries it."""
        try:
            with shielded("remove the cloud-init data", _TIMEOUT):
                await self._in_thread(lambda: self._remove(self.path(job_id)))
        except (OSError, ShieldExpiredError) as error:
            log.warning("cloud-init data was not removed; it is removed at the next start", job_id=job_id,
                        reason=str(error))  # fmt: skip

    def discard(self, job_id: str) -> None:
        """Let ``run`` remove the image of a job that has ended. Does not block."""
        with suppress(trio.WouldBlock):  # then the next start removes it
            self._send.send_nowait(job_id)

    async def run(self) -> None:
        """Remove discarded images until cancelled, and those that are left then."""
        try:
            async for job_id in self._receive:
                await self.remove(job_id)
        finally:
            with suppress(trio.WouldBlock):
                while True:
                    await self.remove(self._receive.receive_nowait())

    async def jobs(self) -> list[str]:
        """Return the ids of the jobs that have a file. Raises UnavailableError."""
        try:
            return await self._in_thread(self._jobs)
        except OSError as error:
            raise UnavailableError(f"the cloud-init data cannot be listed: {error.strerror}") from error

    @staticmethod
    async def _in_thread(work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True)

    def _jobs(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.iso")) if self._folder.is_dir() else []

    def _write(self, path: Path, image: bytes) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            pwrite_all(fd, image, 0)
            os.fsync(fd)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(fd)
        self._sync()

    def _remove(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            path.unlink()
            self._sync()

    def _sync(self) -> None:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
