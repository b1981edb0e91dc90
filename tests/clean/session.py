"""Runs a command in namespaces, on an overlay over cached trees, and cleans up however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.clean import carried
from tests.guest.harness.cache import cache_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

ENTER = Path(__file__).with_name("enter.sh")
NAMESPACES = ("--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child")
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root",
    "TERM": "dumb", "DEBIAN_FRONTEND": "noninteractive",
}  # fmt: skip
PREFIX = "run-"
END_TIMEOUT = 30  # seconds; the kernel ends the processes at once, but a process may wait for a busy disk


class Session:
    """Namespaces over the trees ``lower`` (lowest first).

    :param upper: folder for changes to the tree, or None for one that is removed afterwards
    :param binds: folders to mount into the tree, by their path there
    """

    def __init__(self, lower: list[Path], upper: Path | None = None, binds: dict[str, Path] | None = None) -> None:
        self._lower = lower
        self._upper = upper
        self._binds = binds or {}

    def __enter__(self) -> Self:
        with _no_other_creates():
            self.scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_place()))
            self._lock = (self.scratch / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        for name in ("root", "work", "upper", "tmp", "var-tmp"):
            (self.scratch / name).mkdir()
        if self._upper:  # an overlay needs both on one file system, and its own work folder
            (self.scratch / "work").rmdir()
            work = self._upper.with_name("work")
            work.mkdir()
            (self.scratch / "work").symlink_to(work)
        for name in ("tmp", "var-tmp"):
            (self.scratch / name).chmod(0o1777)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        remove(self.scratch)
        if self._upper:
            shutil.rmtree(self._upper.with_name("work"), ignore_errors=True)
        self._lock.close()

    @property
    def temporary(self) -> Path:
        """The folder that is /tmp in the tree."""
        return self.scratch / "tmp"

    def run(self, command: list[str], cwd: str = "/root") -> int:
        """Run a command as root, with its output here; return its status. All its processes have ended then."""
        binds = {"/tmp": self.temporary, "/var/tmp": self.scratch / "var-tmp", **self._binds}
        arguments = [
            ":".join(map(str, reversed(self._lower))), str(self._upper or self.scratch / "upper"), str(self.scratch),
            *(f"{there}={here}" for there, here in binds.items()), "--",
            "env", "-C", cwd, *command,
        ]  # fmt: skip
        group = _control_group(self.scratch.name)
        if group:
            group.mkdir()
        # The shell joins the group before the namespaces are created. setpriv ends everything if this Python is killed.
        start = 'test -z "$0" || echo $$ > "$0/cgroup.procs"; exec setpriv --pdeathsig KILL unshare "$@"'
        process = subprocess.Popen(
            ["sh", "-ec", start, str(group or ""), *NAMESPACES, "bash", str(ENTER), *arguments],
            env=ENVIRONMENT | carried.environment(self._lower[0]), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return process.wait()
        finally:
            process.kill()  # unshare; the kernel then ends its child and thus the namespace
            process.wait()
            if group:
                _empty(group)


def remove_leftovers() -> None:
    """Clean up after earlier runs that were killed."""
    with _no_other_creates():
        for scratch in _place().glob(f"{PREFIX}*"):
            with contextlib.suppress(BlockingIOError, FileNotFoundError), (scratch / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(scratch)


@contextlib.contextmanager
def _no_other_creates() -> Iterator[None]:
    """Keep other runs from creating their folder: until it is locked, it looks left over."""
    with (_place() / "creation.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove(scratch: Path) -> None:
    """Remove a run's folder, its control group, and the loop devices that are still on files in it."""
    group = _control_group(scratch.name)
    if group and group.is_dir():
        _empty(group)
    _detach_loops(scratch)
    shutil.rmtree(scratch, ignore_errors=True)


def _place() -> Path:
    """Return the folder of all runs, beside the cached trees: parts of an overlay must be on one file system."""
    place = cache_directory("clean")
    place.mkdir(parents=True, exist_ok=True)
    return place


def _detach_loops(scratch: Path) -> None:
    """Detach the run's loop devices, which outlive the processes that created them.

    Match them by inode and name: their paths belong to a namespace that is gone, and their device numbers may be an
    overlay's.
    """
    listed = subprocess.run(
        ["losetup", "--list", "--noheadings", "--raw", "--output", "NAME,BACK-INO,BACK-FILE"],
        capture_output=True, text=True, check=False,
    ).stdout.splitlines()  # fmt: skip
    attached = [fields for line in listed if len(fields := line.split(" ", 2)) == 3]
    if not attached:
        return
    files = {(entry.stat(follow_symlinks=False).st_ino, entry.name) for entry in _files(scratch)}
    for device, inode, shown in attached:
        if (int(inode), shown.removesuffix("\\x20(deleted)").rpartition("/")[2]) in files:
            subprocess.run(["losetup", "--detach", device], check=False)


def _files(folder: Path) -> list[os.DirEntry[str]]:
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found.extend(_files(Path(entry.path)) if entry.is_dir(follow_symlinks=False) else [entry])
    return found


def _control_group(name: str) -> Path | None:
    """Return the path of the run's control group; None if the unified hierarchy is not mounted here."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where) / f"lvp-{name}"
    return None


def _empty(group: Path) -> None:
    """Kill the processes in the group, and remove it and the groups below it."""
    deadline = time.monotonic() + END_TIMEOUT
    while "populated 1" in (group / "cgroup.events").read_text() and time.monotonic() < deadline:
        _kill_all(group)
        time.sleep(0.05)
    for below in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
        below.rmdir()
    group.rmdir()


def _kill_all(group: Path) -> None:
    for listed in group.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            for pid in listed.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
