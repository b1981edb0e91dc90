"""Run a tool as a child process in its own session, and end it with all its children on a cancel.

Handles start, bounded output, timeout and termination; knows no particular tool.
"""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts.cancel_shield import ShieldExpiredError, shielded
from provisioner.contracts.errors import ToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = structlog.get_logger(__name__)

# Seconds between SIGTERM and SIGKILL. A cancel must take effect within a second.
TERM_GRACE = 0.5
# A killed grandchild releases its files a moment later. In a container without an init, orphans are never reaped, so
# the wait is short.
GONE_GRACE = 0.3
# A killed process that still exists after this long hangs in the kernel (state D) on a broken device.
KILL_TIMEOUT = 30.0
# Bytes kept of each output stream: a runaway tool must not exhaust the daemon's memory.
OUTPUT_LIMIT = 1024 * 1024
# The whole environment of a tool: untranslated messages and a fixed search path.
ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LVM_SUPPRESS_FD_WARNINGS": "1",
}


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The exit status and output of a finished tool."""

    status: int
    stdout: str
    stderr: str


@dataclass(slots=True)
class _Output:
    """A buffer for one output stream: keeps the first OUTPUT_LIMIT bytes and drops the rest."""

    kept: bytearray = field(default_factory=bytearray)

    async def drain(self, stream: trio.abc.ReceiveStream, on_output: Callable[[bytes], None] | None) -> None:
        async for chunk in stream:
            self.kept += chunk[: max(0, OUTPUT_LIMIT - len(self.kept))]
            if on_output is not None:
                on_output(bytes(chunk))

    def text(self) -> str:
        return self.kept.decode(errors="replace")


async def run_tool(
    argv: Sequence[str],
    *,
    name: str | None = None,
    timeout: float | None = None,  # noqa: ASYNC109 - the timeout ends the tool, not only the wait
    check: bool = True,
    pass_fds: Sequence[int] = (),
    on_output: Callable[[bytes], None] | None = None,
) -> ToolResult:
    """Run ``argv`` until it exits and return its output.

    Error messages use ``name``, by default the program's name. ``on_output`` gets the raw chunks of standard output as
    they arrive (for progress). After ``timeout`` seconds, or if the caller is cancelled, the whole process group gets
    SIGTERM and, after TERM_GRACE, SIGKILL, and is gone when this returns. Raises ToolError if the tool cannot be
    started, times out, or exits with a nonzero status (only with ``check``).
    """
    name = name or os.path.basename(argv[0])  # noqa: PTH119 - a plain string operation, no file is accessed
    try:
        process = await trio.lowlevel.open_process(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
            env=ENVIRONMENT,
        )
    except OSError as error:
        raise ToolError(f"{name} could not be started: {error.strerror}", tool=name) from error
    out, err = _Output(), _Output()
    with trio.move_on_after(timeout if timeout is not None else float("inf")) as limit:
        await _communicate(process, out, err, on_output)
    if limit.cancelled_caught:
        raise ToolError(f"{name} did not end within {timeout:g} s and was killed", tool=name, stderr=err.text())
    result = ToolResult(process.returncode or 0, out.text(), err.text())
    if check and result.status:
        raise ToolError(
            f"{name} failed with {_describe_status(result.status)}: {last_words(result.stderr)}",
            tool=name,
            status=result.status,
            stderr=result.stderr,
        )
    return result


async def _communicate(
    process: trio.Process, out: _Output, err: _Output, on_output: Callable[[bytes], None] | None
) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        # The nursery ends before the pipes are closed, so that the last output is still read.
        async with process.stdout, process.stderr, trio.open_nursery() as nursery:
            nursery.start_soon(err.drain, process.stderr, None)
            await out.drain(process.stdout, on_output)
            await process.wait()
    except BaseException:
        await _end_group(process)
        raise


async def _end_group(process: trio.Process) -> None:
    """Send SIGTERM and then SIGKILL to the process group. Log a process that survives both."""
    _signal_group(process.pid, signal.SIGTERM)
    with trio.move_on_after(TERM_GRACE, shield=True):
        await process.wait()
    _signal_group(process.pid, signal.SIGKILL)
    try:
        with shielded(f"end process {process.pid}", KILL_TIMEOUT):
            await process.wait()
    except ShieldExpiredError as error:
        log.error("a killed tool does not end; its device may hang", pid=process.pid, reason=error.message)
    with trio.move_on_after(GONE_GRACE, shield=True):
        while _signal_group(process.pid, 0):  # noqa: ASYNC110 - the kernel does not report grandchildren
            await trio.sleep(0.002)


def _signal_group(pid: int, signum: int) -> bool:
    """Send the signal; return False if the group has no process left."""
    try:
        os.killpg(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _describe_status(status: int) -> str:
    return f"exit status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"


def last_words(stderr: str, limit: int = 400) -> str:
    """Return the end of a tool's error output as one line, for an error message."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return "; ".join(lines)[-limit:] or "no output on stderr"
