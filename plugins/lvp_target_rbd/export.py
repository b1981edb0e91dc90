"""Makes an image a local file while a converter writes it: QEMU's storage daemon exports it through FUSE.

Each export is a process, a mounted file, and files beside it in one folder of this installation. The process ends with
the service, even if that is killed; recovery ends what is left and unmounts it. The folder also records the tokens
of images that are being worked on: a call that is killed may leave an object of an image that the pool does not list.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from lvp_target_rbd.child_process import Companion, companion
from provisioner.contracts import last_words, shielded
from provisioner.contracts.errors import TargetError, TargetUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from lvp_target_rbd.settings import RbdSettings

# The shell waits for the end of its input, which is the service's, then ends its child. Its child has none.
_UNTIL_END = '"$@" </dev/null & child=$!; cat >/dev/null; kill "$child" 2>/dev/null; wait "$child"'
# Seconds. An export starts in 60 ms on an idle machine; to end, it only has to flush what was flushed before.
_START, _END, _POLL = 30.0, 10.0, 0.01
# Seconds. Then it is killed, and the cluster believes for a while that the image is still open.
_ABORT = 2.0


class Export:
    """An exported image: ``path`` is the file. Ends on ``close``, or on ``abort`` without regard to what is written."""

    def __init__(self, path: Path, child: Companion) -> None:
        self.path = path
        self._child = child
        self._closed = self._aborted = False

    async def abort(self) -> None:
        """End it within seconds, so that a thread that waits for the cluster gets an error."""
        if not self._closed:
            self._closed = self._aborted = True
            await self._child.end(_ABORT)

    async def close(self) -> None:
        """End it and its watch on the image. Raises TargetError if it had ended before."""
        if not self._closed:
            self._closed = True
            self._aborted = not await self._child.end(_END)
        if self._aborted:
            raise TargetError(f"the export {self.path.name} ended too early; what was written may be incomplete")


@dataclass(frozen=True, slots=True)
class Exports:
    """The exports of one target; ``folder`` is for them alone."""

    folder: Path
    settings: RbdSettings

    @asynccontextmanager
    async def exported(self, image: str, token: str) -> AsyncIterator[Export]:
        """Export an image read-write until the block ends."""
        files = _Files(self.folder, token)
        try:
            await trio.to_thread.run_sync(files.make, _with_options(self.settings))
            with files.log.open("wb") as log:
                async with companion(self._command(image, files), "the export", seconds=_END, stderr=log) as child:
                    await _started(child, files, image)
                    yield Export(files.mount, child)
        finally:
            with shielded(f"unmount the export of {image}", 30):
                await trio.to_thread.run_sync(files.remove)

    def note(self, token: str, names: Mapping[str, str]) -> None:
        """Record that images with this token are about to be made or renamed. Blocking.

        ``names`` are names without the token that these renames may leave, with the ids to which they lead.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._noted(token).write_text(json.dumps(dict(names)))
        except OSError as error:
            raise TargetUnavailableError(f"{self.folder} cannot be written: {error.strerror}") from error

    def settle(self, token: str) -> None:
        """Forget the token: nothing of it is left in the pool. Blocking."""
        self._noted(token).unlink(missing_ok=True)

    def _noted(self, token: str) -> Path:
        return self.folder / f"{token}.work"

    def work(self) -> dict[str, dict[str, str]]:
        """Return what was noted about all work and exports that did not end well, or go on, by token. Blocking."""
        tokens = {path.name.partition(".")[0] for path in self.folder.glob("*.*")}
        return {token: self._names_of(token) for token in sorted(tokens)}

    def _names_of(self, token: str) -> dict[str, str]:
        try:
            found = json.loads(self._noted(token).read_text())
        except (OSError, ValueError):  # the machine went down while it was written
            return {}
        return {str(name): str(one) for name, one in found.items()} if isinstance(found, dict) else {}

    def end(self, token: str) -> None:
        """End what an earlier run left of an export. Blocking, for seconds at most."""
        files = _Files(self.folder, token)
        files.end_process()
        files.remove()

    def _command(self, image: str, files: _Files) -> list[str]:
        settings = self.settings
        device = {
            "driver": "rbd",
            "node-name": "image",
            "pool": settings.pool,
            "image": image,
            "conf": str(files.conf),
            "user": settings.user,
            "discard": "unmap",
            **({"namespace": settings.namespace} if settings.namespace else {}),
        }
        export = {"type": "fuse", "id": "file", "node-name": "image", "mountpoint": str(files.mount), "writable": True}
        return [
            *("/bin/sh", "-c", _UNTIL_END, "sh", settings.qemu_storage_daemon),
            *("--blockdev", json.dumps(device), "--export", json.dumps(export), "--pidfile", str(files.pid)),
        ]


async def _started(child: Companion, files: _Files, image: str) -> None:
    """Wait until the file is mounted: the process id is written after that."""
    with trio.move_on_after(_START) as limit:
        while not files.is_up():
            if child.status is not None:
                break
            if files.log.stat().st_size and not files.has_process():
                break
            await trio.sleep(_POLL)
        else:
            return
    what = f"not within {_START:g} s" if limit.cancelled_caught else last_words(files.log.read_text(errors="replace"))
    raise TargetUnavailableError(f"image {image} could not be exported as a local file: {what}")


class _Files:
    """The files of one export. All methods block briefly."""

    def __init__(self, folder: Path, token: str) -> None:
        self._folder, self._token = folder, token
        self.mount, self.pid = folder / f"{token}.raw", folder / f"{token}.pid"
        self.conf, self.log = folder / f"{token}.conf", folder / f"{token}.log"

    def make(self, conf: str) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.mount.touch(mode=0o600)
            self.log.touch(mode=0o600)
            self.conf.write_text(conf)
        except OSError as error:
            raise TargetUnavailableError(f"{self._folder} cannot be written: {error.strerror}") from error

    def is_up(self) -> bool:
        return self.pid.exists()

    def has_process(self) -> bool:
        """Return whether a process of this export runs; the shell does not end before its input does."""
        return any(True for _ in self._processes())

    def end_process(self) -> None:
        """End the processes of this export, gently at first."""
        for number, seconds in ((signal.SIGTERM, _END), (signal.SIGKILL, _END)):
            for pid in self._processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while list(self._processes()) and time.monotonic() < deadline:
                time.sleep(_POLL)

    def remove(self) -> None:
        """Unmount the file and remove everything. Raises TargetUnavailableError if it stays mounted."""
        while _is_mounted(self.mount):
            done = subprocess.run(["umount", "--lazy", self.mount], capture_output=True, text=True, check=False)
            if done.returncode and _is_mounted(self.mount):
                raise TargetUnavailableError(f"{self.mount} cannot be unmounted: {last_words(done.stderr)}")
        for path in (self.mount, self.pid, self.conf, self.log):
            path.unlink(missing_ok=True)

    def _processes(self) -> list[int]:
        """Return the processes, apart from the shell, that were started for this export."""
        ours, found = str(self.pid).encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if ours in words and b"--pidfile" in words and not words[0].endswith(b"/sh"):
                    found.append(int(folder.name))
        return found


def _is_mounted(path: Path) -> bool:
    """Return whether something is mounted there. Asks the table, because a stale mount answers nothing."""
    mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return any(line.split(" ")[4] == str(path).replace(" ", "\\040") for line in mounts.splitlines())


def _with_options(settings: RbdSettings) -> str:
    """Return the host's configuration and, after it, what an export needs: QEMU takes options only from a file."""
    try:
        conf = Path(settings.conf).read_text()
    except OSError as error:
        raise TargetUnavailableError(f"{settings.conf} cannot be read: {error.strerror}") from error
    seconds = int(settings.op_timeout)
    keyring = settings.keyring_path(os.environ)
    return "\n".join(
        [
            conf,
            f"[client.{settings.user}]",
            f"rados osd op timeout = {seconds}",
            f"rados mon op timeout = {seconds}",
            f"client mount timeout = {seconds}",
            *([f"keyring = {keyring}"] if keyring else []),
            "",
        ]
    )
