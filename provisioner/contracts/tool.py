"""Running a tool: a child process in a session of its own, ended with all its children when we are cancelled.

Owns start, bounded output, time limit and the ending; knows no tool.
"""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts.errors import ToolError
from provisioner.contracts.shield import ShieldExpiredError, shielded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = structlog.get_logger(__name__)

# Time between asking a process group to end and killing it. A cancel is promised within a second.
TERM_GRACE = 0.5
# A killed grandchild lets go of its files a moment later. Where nobody reaps orphans (a container without an
# init) its name stays for ever, so the wait for that is short.
GONE_GRACE = 0.3
# A killed process that is still there after this long hangs in the kernel (state D), on a broken device.
KILL_TIMEOUT = 30.0
# What is kept of each output stream; a tool gone mad must not eat the daemon's memory.
OUTPUT_LIMIT = 1024 * 1024
# Tools see this and nothing else of our environment: fixed words in messages, fixed places for programs.
ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LVM_SUPPRESS_FD_WARNINGS": "1",
}


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a finished tool printed."""

    status: int
    stdout: str
    stderr: str


@dataclass(slots=True)
class _Output:
    """The bounded memory of one output stream: the first OUTPUT_LIMIT bytes are kept, the rest is dropped."""

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
    timeout: float | None = None,  # noqa: ASYNC109 - a tool's limit ends the tool, not only our waiting
    check: bool = True,
    pass_fds: Sequence[int] = (),
    on_output: Callable[[bytes], None] | None = None,
) -> ToolResult:
    """Run ``argv`` to its end and return what it printed.

    ``name`` is what errors call it, where that is not the name of its program.
    ``on_output`` is given the raw chunks of standard output as they come (for progress). ``timeout`` in
    seconds; when it passes, or when the caller is cancelled, the whole process group gets SIGTERM and, after
    TERM_GRACE, SIGKILL, and is gone when this returns. Raises ToolError: could not be started, ended with
    another status than 0 (only with ``check``), ran out of time.
    """
    name = name or os.path.basename(argv[0])  # noqa: PTH119 - a name out of a string, no file is meant
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
        await _attend(process, out, err, on_output)
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


async def _attend(process: trio.Process, out: _Output, err: _Output, on_output: Callable[[bytes], None] | None) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        # The nursery ends before the pipes are closed: the last words may still be on their way in.
        async with process.stdout, process.stderr, trio.open_nursery() as nursery:
            nursery.start_soon(err.drain, process.stderr, None)
            await out.drain(process.stdout, on_output)
            await process.wait()
    except BaseException:
        await _end_group(process)
        raise


async def _end_group(process: trio.Process) -> None:
    """End the leader and everything it started: SIGTERM, a short grace, SIGKILL. What stays is logged."""
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
    """Whether there is anybody left in the group to hear it."""
    try:
        os.killpg(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _describe_status(status: int) -> str:
    return f"exit status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"


def last_words(stderr: str, limit: int = 400) -> str:
    """The last lines of a tool's complaints as one line, for an error's sentence."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return "; ".join(lines)[-limit:] or "no output on stderr"
