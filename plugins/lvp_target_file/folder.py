"""The folder on disk: what a volume's file is, how it is made, published, taken away. Decides nothing.

Every method blocks for a moment: call it in a thread. OSErrors come out as the target's errors.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lvp_target_file.in_use import users_of
from provisioner.contracts import Capacity, Finding, Provenance, StageRequest, VolumeUser
from provisioner.contracts.errors import NoSpaceError, TargetError, TargetUnavailableError, VolumeExistsError
from provisioner.contracts.write_probe import write_probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUFFIX = ".raw"
ATTRIBUTE = "user.lvp.provenance"
# All attributes of a file share one block on ext4; a presigned url may be as long as that.
MAX_URL = 2048
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ATTRIBUTES = {errno.EOPNOTSUPP, errno.ENOSYS}
# One fallocate at most, so that a cancel is heard between two.
_ALLOCATE_STEP = 1024**3


class _Mark(msgspec.Struct, frozen=True):
    """What the attribute holds. It counts only on the very file it was made for, under its own name."""

    name: str
    inode: int
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands under a volume's name. ``provenance`` is None where this service did not make it."""

    name: str
    path: Path
    status: os.stat_result
    provenance: Provenance | None

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)

    @property
    def is_plain(self) -> bool:
        """A regular file with no other name: the only thing that may be replaced."""
        return self.is_file and self.status.st_nlink == 1

    def is_still(self, other: Entry | None) -> bool:
        """Whether ``other``, looked up later, is the same file."""
        return other is not None and os.path.samestat(self.status, other.status)


class Folder:
    """One directory of volumes."""

    def __init__(self, directory: str) -> None:
        self.path = Path(directory)
        self.stages = self.path / ".lvp" / "stage"

    def file_of(self, volume: str) -> Path:
        return self.path / f"{volume}{SUFFIX}"

    def stage_of(self, request: StageRequest) -> Path:
        return self.stages / f"{request.job_id}.{request.name}"

    def look(self, volume: str) -> Entry | None:
        """What stands under that name, whatever it is."""
        path = self.file_of(volume)
        with _translated("look at", path):
            if not self.path.is_dir():
                raise TargetUnavailableError(f"the folder {self.path} is not there")
            try:
                status = path.lstat()
            except FileNotFoundError:
                return None
            return Entry(volume, path, status, _read_mark(path, volume, status))

    def own(self) -> list[Entry]:
        """Every volume this service made here."""
        with _translated("list", self.path):
            names = sorted(path.name.removesuffix(SUFFIX) for path in self.path.iterdir() if path.suffix == SUFFIX)
        entries = [self.look(name) for name in names]
        return [entry for entry in entries if entry is not None and entry.provenance is not None]

    def capacity(self) -> Capacity:
        with _translated("measure", self.path):
            about = os.statvfs(self.path)
        return Capacity(about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize)

    def check(self) -> None:
        """Write something small to the disk, and leave nothing behind."""
        with _translated("write into", self.path):
            write_probe(self.path)

    def users(self, path: Path) -> list[VolumeUser]:
        with _translated("look who uses", path):
            return users_of(path)

    def make(self, request: StageRequest, *, allocate: bool, check: Callable[[], None]) -> None:
        """Make the staged file, all zeros. ``check`` may raise to stop an allocation."""
        staged, size = self.stage_of(request), request.size_bytes
        with _translated("make", staged):
            self.stages.mkdir(mode=0o700, parents=True, exist_ok=True)
            staged.unlink(missing_ok=True)  # an earlier attempt of this very job
            with _opened(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
                _write_mark(fd, request.name, request.provenance)  # fails now where it could never be committed
                os.ftruncate(fd, size)
                for start in range(0, size if allocate else 0, _ALLOCATE_STEP):
                    check()
                    os.posix_fallocate(fd, start, min(_ALLOCATE_STEP, size - start))

    def take_over(self, entry: Entry, request: StageRequest) -> None:
        """Turn the old volume's file into the staged one, all zeros: its content is gone."""
        staged = self.stage_of(request)
        with _translated("take over", entry.path):
            self.stages.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _opened(entry.path, os.O_RDWR) as fd:  # first whatever can fail
                entry.path.rename(staged)
                os.ftruncate(fd, 0)
                os.ftruncate(fd, request.size_bytes)
            self._sync(self.path)

    def publish(self, request: StageRequest, provenance: Provenance, over: Entry | None) -> Entry:
        """Put the staged file under its name, in one step that a power cut cannot halve."""
        staged, volume = self.stage_of(request), request.name
        final = self.file_of(volume)
        with _translated("publish", staged), _opened(staged, os.O_RDWR) as fd:
            if over is not None:
                os.fchown(fd, over.status.st_uid, over.status.st_gid)
                os.fchmod(fd, stat.S_IMODE(over.status.st_mode))
            _write_mark(fd, volume, provenance)
            os.fsync(fd)
        with _translated("publish", final):
            if over is not None:
                staged.rename(final)
            else:
                _link_new(staged, final)
            self._sync(self.path)
            return Entry(volume, final, final.lstat(), provenance)

    def staged(self) -> list[Path]:
        """Every staged file."""
        with _translated("list", self.stages):
            return sorted(self.stages.iterdir()) if self.stages.is_dir() else []

    def delete(self, path: Path) -> bool:
        """Remove a file for good. False where it was not there."""
        with _translated("remove", path):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
            self._sync(path.parent)
            return True

    def diagnose(self) -> list[Finding]:
        """What of this folder volumes stand on: that it is there, ours to write in, and keeps attributes."""
        if not self.path.is_dir():
            return [Finding(False, f"{self.path} is no folder", "create it, or mount what belongs there")]
        return [
            _finding(
                os.access(self.path, os.W_OK | os.X_OK),
                f"{self.path} can be written to",
                "give the service write access",
            ),
            _finding(
                _keeps_attributes(self.path),
                f"the filesystem of {self.path} keeps user extended attributes",
                "use ext4, xfs, btrfs or NFS 4.2",
            ),
        ]

    def _sync(self, directory: Path) -> None:
        with _opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
            os.fsync(fd)


def _link_new(staged: Path, final: Path) -> None:
    """A rename that refuses to replace. Cut short between the two, recovery takes the first name away."""
    try:
        os.link(staged, final)
    except FileExistsError as error:
        raise VolumeExistsError(f"a file {final.name} came up while the job ran; it is left alone") from error
    staged.unlink()


def _write_mark(fd: int, volume: str, provenance: Provenance) -> None:
    kept = replace(provenance, image_url=provenance.image_url[:MAX_URL])
    mark = _Mark(volume, os.fstat(fd).st_ino, kept)
    os.setxattr(fd, ATTRIBUTE, msgspec.json.encode(mark))


def _read_mark(path: Path, volume: str, status: os.stat_result) -> Provenance | None:
    if not stat.S_ISREG(status.st_mode):
        return None
    try:
        mark = msgspec.json.decode(os.getxattr(path, ATTRIBUTE, follow_symlinks=False), type=_Mark)
    except OSError as error:
        if error.errno in {errno.ENODATA, *_NO_ATTRIBUTES}:
            return None
        raise
    except (msgspec.MsgspecError, RecursionError):
        return None  # not written by us
    return mark.provenance if (mark.name, mark.inode) == (volume, status.st_ino) else None


def _finding(ok: bool, what: str, mend: str) -> Finding:
    return Finding(ok, what if ok else f"not so: {what}", "" if ok else mend)


def _keeps_attributes(path: Path) -> bool:
    try:
        os.getxattr(path, ATTRIBUTE)
    except OSError as error:
        return error.errno not in _NO_ATTRIBUTES
    return True


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _translated(doing: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpaceError(f"no space left to {doing} {path}") from error
        if error.errno in _NO_ATTRIBUTES:
            raise TargetError(
                f"the filesystem of {path.parent} has no user extended attributes; volumes cannot be told apart there"
            ) from error
        raise TargetUnavailableError(f"could not {doing} {path}: {error.strerror}") from error
