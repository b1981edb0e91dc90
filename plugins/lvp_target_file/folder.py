"""The folder on disk: creates, inspects and publishes the files of volumes.

Methods block briefly: call them in a thread. OSErrors are raised as the target's errors.
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

from lvp_target_file.disk import NO_ATTRIBUTES, opened, sync, translated
from lvp_target_file.folder_lock import ChangeLock, NoLock
from lvp_target_file.formats import FORMATS
from lvp_target_file.holders import users_of
from lvp_target_file.names import StagedFile, staged_name
from provisioner.contracts import Capacity, Finding, Provenance, StageRequest, VolumeUser, write_probe
from provisioner.contracts.errors import TargetUnavailableError, VolumeExistsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from provisioner.contracts import PlaceLock

LOCK = ".lvp/lock"
_CHANGES = ".lvp/changes.lock"
ATTRIBUTE = "user.lvp.provenance"
# On ext4 all attributes of a file share one block, and a presigned URL can be that long.
MAX_URL = 2048
# Bytes per fallocate call; cancellation is checked between calls.
_ALLOCATE_STEP = 1024**3


class _Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """The content of the attribute. Valid only for the file, the name and the format it was written for."""

    name: str
    inode: int
    provenance: Provenance
    image_format: str = "raw"


_DECODER = msgspec.json.Decoder(_Mark)


@dataclass(frozen=True, slots=True)
class Entry:
    """The file at a volume's path. ``provenance`` is None if this service did not create it.

    ``size_bytes`` is the size of the disk in it.
    """

    name: str
    path: Path
    status: os.stat_result
    provenance: Provenance | None
    size_bytes: int

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)

    @property
    def is_plain(self) -> bool:
        """Whether this is a regular file with a single link; only such a file may be replaced."""
        return self.is_file and self.status.st_nlink == 1

    def is_still(self, other: Entry | None) -> bool:
        """Return whether ``other``, looked up later, is the same file."""
        return other is not None and os.path.samestat(self.status, other.status)


class Folder:
    """One directory of volumes. ``owner`` is this installation's id, known once the folder is claimed.

    Wrap what moves or removes volumes in ``changing``, and what only reads several in ``looking``.
    """

    def __init__(self, directory: str, lock: PlaceLock, image_format: str = "raw") -> None:
        self.path = Path(directory)
        self.format = FORMATS[image_format]
        changes = NoLock if image_format == "raw" else ChangeLock
        self._changes = changes(self.path / _CHANGES)
        self.changing, self.looking = self._changes.changing, self._changes.looking
        self.stages = self.path / ".lvp" / "stage"
        self.lock = lock
        self.owner = ""

    def claim(self) -> None:
        """Lock the folder against other installations until the lock is released. Raises TargetUnavailableError."""
        self.check_there()
        self.owner = self.lock.take()

    def check_there(self) -> None:
        """Raise TargetUnavailableError if the folder is missing, for example because a mount failed."""
        if not self.path.is_dir():
            raise TargetUnavailableError(f"the folder {self.path} is missing")

    def file_of(self, volume: str) -> Path:
        return self.path / f"{volume}{self.format.suffix}"

    def stage_of(self, request: StageRequest, kind: str = "") -> Path:
        return self.stages / staged_name(self.owner, request.job_id, request.name, kind)

    def look(self, volume: str) -> Entry | None:
        """Return the entry at the volume's path, of any file type; None if there is none."""
        path = self.file_of(volume)
        with self.looking(), translated("inspect", path):
            self.check_there()
            try:
                status = path.lstat()
                provenance = read_mark(path, volume, status, self.format.name)
                return Entry(volume, path, status, provenance, self.format.size_of(path, status))
            except FileNotFoundError:
                return None

    def own(self) -> list[Entry]:
        """Return every volume that this service created here."""
        with translated("list", self.path):
            suffix = self.format.suffix
            names = sorted(path.name.removesuffix(suffix) for path in self.path.iterdir() if path.suffix == suffix)
        entries = [self.look(name) for name in names]
        return [entry for entry in entries if entry is not None and entry.provenance is not None]

    def capacity(self) -> Capacity:
        with translated("read the free space of", self.path):
            status = os.statvfs(self.path)
        return Capacity(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)

    def check(self) -> None:
        """Check that the disk is writable; leave no file behind."""
        with translated("write to", self.path):
            write_probe(self.path)

    def users(self, path: Path) -> list[VolumeUser]:
        with translated("find the users of", path):
            return users_of(path)

    def make(self, request: StageRequest, *, allocate: bool, check: Callable[[], None]) -> None:
        """Create the staged file, all zeros. ``check`` may raise to stop the allocation."""
        size = request.size_bytes
        with translated("create", self.stage_of(request)), self.created(request) as fd:
            os.ftruncate(fd, size)
            for start in range(0, size if allocate else 0, _ALLOCATE_STEP):
                check()
                os.posix_fallocate(fd, start, min(_ALLOCATE_STEP, size - start))

    @contextmanager
    def created(self, request: StageRequest, kind: str = "") -> Iterator[int]:
        """Create the staged file, empty, and open it. Raises OSError."""
        staged = self.stage_of(request, kind)
        self.stages.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged.unlink(missing_ok=True)  # left by an earlier attempt of this job
        with opened(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            self.mark(fd, request.name, request.provenance)  # fail early if attributes are unsupported
            yield fd

    def finish(
        self, request: StageRequest, provenance: Provenance, over: Entry | None, complete: Callable[[int], None]
    ) -> None:
        """Write the provenance to the staged file and copy the owner and mode of ``over``; sync it.

        ``complete`` gives the open file its format before.
        """
        staged = self.stage_of(request)
        with translated("publish", staged), opened(staged, os.O_RDWR) as fd:
            complete(fd)
            if over is not None:
                os.fchown(fd, over.status.st_uid, over.status.st_gid)
                os.fchmod(fd, stat.S_IMODE(over.status.st_mode))
            self.mark(fd, request.name, provenance)
            os.fsync(fd)

    def publish(self, request: StageRequest) -> None:
        """Move the staged file to its final name. Raises VolumeExistsError if the name is taken."""
        with translated("publish", self.file_of(request.name)):
            rename_new(self.stage_of(request), self.file_of(request.name))
            sync(self.path)

    def mark(self, fd: int, volume: str, provenance: Provenance) -> None:
        """Write the provenance to the file of a volume. Raises OSError."""
        kept = replace(provenance, image_url=provenance.image_url[:MAX_URL])
        mark = _Mark(volume, os.fstat(fd).st_ino, kept, self.format.name)
        os.setxattr(fd, ATTRIBUTE, msgspec.json.encode(mark))

    def staged(self) -> list[StagedFile]:
        """Return every file in the stage directory."""
        with translated("list", self.stages):
            found = sorted(self.stages.iterdir()) if self.stages.is_dir() else []
        return [StagedFile.read(path) for path in found]

    def diagnose(self, *, shared: bool = False) -> list[Finding]:
        """Return findings: the folder exists, is writable and supports extended attributes."""
        if not self.path.is_dir():
            return [Finding(False, f"{self.path} is not a folder", "create it, or mount its filesystem")]
        return [
            *self._ownership(shared),
            _writable(self.path),
            _attributes(self.path),
        ]

    def _ownership(self, shared: bool) -> list[Finding]:
        """Return findings about other installations that are running or left staged volumes here."""
        if (holder := self.lock.held_by_other()) is not None:
            return [
                Finding(
                    False,
                    f"another installation is using {self.path} ({holder})",
                    "stop one of them, or set shared = true in both",
                )
            ]
        if shared:
            return []
        known = {"", self.lock.known_owner()}
        foreign = [file for file in self.staged() if file.owner not in known]
        if not foreign:
            return []
        owners = ", ".join(sorted({file.owner for file in foreign}))
        return [
            Finding(
                False,
                f"{self.path} has {len(foreign)} staged volumes of another installation ({owners})",
                "start that installation; if its state directory is lost, run 'lvp recover --take-over'",
            )
        ]


def _writable(path: Path) -> Finding:
    try:
        write_probe(path)
    except OSError as error:
        return Finding(
            False, f"{path} cannot be written: {error.strerror}", "give the service write access, or free some space"
        )
    return Finding(True, f"{path} can be written")


def rename_new(staged: Path, final: Path) -> None:
    """Rename without replacing. If interrupted between link and unlink, recovery removes the staged name."""
    try:
        os.link(staged, final)
    except FileExistsError as error:
        raise VolumeExistsError(
            f"the file {final.name} was created while the job was running; it was not changed"
        ) from error
    staged.unlink()


def read_mark(path: Path, volume: str, status: os.stat_result, image_format: str) -> Provenance | None:
    """Return the provenance of the file as ``volume``, or None if this service did not create it. Raises OSError."""
    if not stat.S_ISREG(status.st_mode):
        return None
    try:
        mark = _DECODER.decode(os.getxattr(path, ATTRIBUTE, follow_symlinks=False))
    except OSError as error:
        if error.errno in {errno.ENODATA, *NO_ATTRIBUTES}:
            return None
        raise
    except (msgspec.MsgspecError, RecursionError):
        return None  # not written by this service
    now = (volume, status.st_ino, image_format)
    return mark.provenance if (mark.name, mark.inode, mark.image_format) == now else None


def _attributes(path: Path) -> Finding:
    if _supports_attributes(path):
        return Finding(True, f"the filesystem of {path} supports user extended attributes")
    return Finding(
        False,
        f"the filesystem of {path} does not support user extended attributes",
        "use ext4, xfs, btrfs or NFS 4.2",
    )


def _supports_attributes(path: Path) -> bool:
    try:
        os.getxattr(path, ATTRIBUTE)
    except OSError as error:
        return error.errno not in NO_ATTRIBUTES
    return True
