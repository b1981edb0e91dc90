"""A child process that lives as long as some work of the service, and ends with it, even if it is killed.

Its standard input is a pipe from the service, and ends with the service: a child that is told by that needs no other
watch, even if the service is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

import trio

from provisioner.contracts import shielded
from provisioner.contracts.errors import TargetUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class Companion:
    """A running child in a process group of its own."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self.killed = False

    @property
    def status(self) -> int | None:
        """Return the exit status; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """Kill the whole group at once."""
        self.killed = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def tell(self, line: bytes = b"\n") -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(line)

    async def read(self) -> bytes:
        """Return the next output; empty when it has ended."""
        assert self._process.stdout is not None
        return bytes(await self._process.stdout.receive_some(4096))

    async def end(self, seconds: float) -> bool:
        """Close its input and wait for its end; kill it after ``seconds``. Return whether it ended by itself, well."""
        if self._process.stdin is not None:
            await self._process.stdin.aclose()
        with trio.move_on_after(seconds):
            await self._process.wait()
        if self._process.poll() is None:
            self.kill()
            await self._process.wait()
        return self._process.returncode == 0 and not self.killed


@asynccontextmanager
async def companion(
    argv: Sequence[str], what: str, *, seconds: float, stderr: BinaryIO | int = subprocess.DEVNULL
) -> AsyncIterator[Companion]:
    """Start a child, and end it with the block; it then has ``seconds`` to end by itself."""
    try:
        process = await trio.lowlevel.open_process(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            env=_ENVIRONMENT,
        )
    except OSError as error:
        raise TargetUnavailableError(f"{what} could not be started: {error.strerror}") from error
    child = Companion(process)
    try:
        yield child
    finally:
        with shielded(f"end {what}", seconds + 30):
            await child.end(seconds)
            if process.stdout is not None:
                await process.stdout.aclose()
