"""Bases: read-only files in ``.lvp/base`` that hold one image each, from which volumes are cloned.

A base is named after its image's digest and format. Its extended attribute says that it is complete, and is valid only
for the file and the content that it was written for: a base that was copied, restored from a backup or written to is
not used. Clones do not need their base, so it may be removed at any time. Its access time is that of its last use.

Methods block briefly: call them in a thread. OSErrors are raised as the target's errors.
"""

from __future__ import annotations

import errno
import os
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from lvp_target_file import reflink
from lvp_target_file.disk import NO_ATTRIBUTES, opened, sync, translated
from lvp_target_file.folder import MAX_URL
from lvp_target_file.names import BASES
from provisioner.contracts import Base, Provenance
from provisioner.contracts.errors import BaseGoneError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lvp_target_file.folder import Folder

ATTRIBUTE = "user.lvp.base"
_READ_ONLY = 0o400
_NAME = re.compile(r"[a-z0-9]+-[0-9a-f]+\.[A-Za-z0-9_-]+")


class _BaseMark(msgspec.Struct, frozen=True):
    """The content of the attribute."""

    name: str
    inode: int
    size: int
    mtime_ns: int
    provenance: Provenance

    def is_of(self, name: str, status: os.stat_result) -> bool:
        now = (name, status.st_ino, status.st_size, status.st_mtime_ns)
        return (self.name, self.inode, self.size, self.mtime_ns) == now


_DECODER = msgspec.json.Decoder(_BaseMark)


@dataclass(frozen=True, slots=True)
class BaseFile:
    """A base on disk. ``digest`` is its image's, ``last_used`` in seconds since the epoch."""

    path: Path
    digest: str
    last_used: float


class BaseFiles:
    """The bases of one folder."""

    subfolder = BASES

    def __init__(self, folder: Folder) -> None:
        self.path = folder.path / self.subfolder
        self._folder = folder

    def find(self, digest: str, image_format: str) -> Base | None:
        """Return the base of that image, if there is a complete one."""
        path = self.path / base_name(digest, image_format)
        with translated("inspect", path):
            try:
                status = path.lstat()
                mark = _read_mark(path)
            except FileNotFoundError:
                return None
        if mark is None or not mark.is_of(path.name, status) or mark.provenance.image_digest != digest:
            return None
        return Base(path.name, digest, status.st_size)

    @contextmanager
    def opened(self, base: Base) -> Iterator[int]:
        """Open a base to clone it, and note its use. Raises BaseGoneError if it was removed or changed."""
        path = self.path / base.name
        with translated("clone", path):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise _gone(base) from error
            try:
                status, mark = os.fstat(fd), _read_mark(fd)
                if mark is None or not mark.is_of(base.name, status):
                    raise _gone(base)
                os.utime(fd, ns=(time.time_ns(), status.st_mtime_ns))
                yield fd
            finally:
                os.close(fd)

    def publish(self, staged: Path, name: str, provenance: Provenance) -> Base:
        """Give a complete staged file the name of a base. An equal base of that name is replaced."""
        with translated("publish", staged):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with opened(staged, os.O_RDWR) as fd:
                os.fchmod(fd, _READ_ONLY)
                status = os.fstat(fd)
                kept = replace(provenance, image_url=provenance.image_url[:MAX_URL])
                mark = _BaseMark(name, status.st_ino, status.st_size, status.st_mtime_ns, kept)
                os.setxattr(fd, ATTRIBUTE, msgspec.json.encode(mark))
                os.fsync(fd)
            staged.rename(self.path / name)
            sync(self.path)
            sync(staged.parent)
        return Base(name, provenance.image_digest or "", status.st_size)

    def count(self) -> int:
        """Return how many complete bases there are."""
        with translated("list", self.path):
            return len(list(self._files()))

    def check_name_free(self, name: str) -> None:
        """Raise BaseGoneError if no base of that name must be made."""

    def least_used_first(self, sparing: str | None = None) -> list[BaseFile]:
        """Return the bases that may be evicted: all but those of the digest ``sparing``."""
        with translated("list", self.path):
            found = [file for file in self._files() if sparing is None or file.digest != sparing]
        return sorted(found, key=lambda file: (file.last_used, file.path.name))

    def own_bytes(self, sparing: str | None = None) -> int:
        """Return the bytes that only the evictable bases take. See ``least_used_first``."""
        return sum(self.bytes_of(file) for file in self.least_used_first(sparing))

    def bytes_of(self, file: BaseFile) -> int:
        """Return the bytes that an eviction of ``file`` would free."""
        with translated("inspect", file.path):
            try:
                return reflink.own_bytes(file.path)
            except FileNotFoundError:
                return 0

    def evict(self, file: BaseFile) -> bool:
        """Remove a base; return False if it must stay. A job that is about to clone it gets BaseGoneError."""
        with translated("remove", file.path):
            try:
                file.path.chmod(0o600)
                with opened(file.path, os.O_RDWR) as fd:
                    file.path.unlink(missing_ok=True)
                    # XFS frees a removed file in the background, but a truncated one at once.
                    os.ftruncate(fd, 0)
            except FileNotFoundError:  # evicted meanwhile
                return False
            sync(self.path)
        return True

    def recover(self) -> list[str]:
        """Remove bases that are not usable, because they were copied or changed. Return what was done."""
        done = []
        with translated("list", self.path):
            for path in self._paths():
                mark = _read_mark(path)
                if mark is not None and not mark.is_of(path.name, path.lstat()) and self._may_go(path.name):
                    path.unlink(missing_ok=True)
                    done.append(f"removed the base {path.name}: it was changed after it was made")
        return done

    def _may_go(self, name: str) -> bool:  # noqa: ARG002
        """Return whether a base may be removed."""
        return True

    def _files(self) -> Iterator[BaseFile]:
        for path in self._paths():
            try:
                status, mark = path.lstat(), _read_mark(path)
            except FileNotFoundError:  # evicted meanwhile
                continue
            if mark is not None and mark.is_of(path.name, status):
                yield BaseFile(path, mark.provenance.image_digest or "", status.st_atime)

    def _paths(self) -> list[Path]:
        return sorted(self.path.iterdir()) if self.path.is_dir() else []


def base_name(digest: str, image_format: str) -> str:
    """Return the file name of the base for an image and format. Raises InvalidRequestError."""
    name = f"{digest.replace(':', '-')}.{image_format}"
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(f"there can be no base of {digest[:80]!r} as {image_format[:40]!r}")
    return name


def _read_mark(file: Path | int) -> _BaseMark | None:
    """Return the mark of a file, None if it is not a base. Raises OSError."""
    try:
        follow = {} if isinstance(file, int) else {"follow_symlinks": False}
        return _DECODER.decode(os.getxattr(file, ATTRIBUTE, **follow))
    except OSError as error:
        if error.errno in {errno.ENODATA, *NO_ATTRIBUTES}:
            return None
        raise
    except (msgspec.MsgspecError, RecursionError):
        return None  # not written by this service


def _gone(base: Base) -> BaseGoneError:
    return BaseGoneError(f"the base {base.name} was removed while the job was running")
