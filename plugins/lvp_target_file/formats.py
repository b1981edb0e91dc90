"""The formats of volumes: what each writes to a complete file, and how it tells the size of the disk. Blocking."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from lvp_target_file import qcow2

if TYPE_CHECKING:
    from pathlib import Path


class VolumeFormat(ABC):
    """A format. ``name`` is that of the setting and, with a dot, the suffix of the files."""

    name: ClassVar[str]

    @property
    def suffix(self) -> str:
        return f".{self.name}"

    @abstractmethod
    def rounded(self, size: int) -> int:
        """Return the size that a volume of ``size`` bytes gets."""

    @abstractmethod
    def extra_bytes(self, size: int) -> int:
        """Return the most that a volume of that size takes on disk besides its data."""

    @abstractmethod
    def size_of(self, path: Path, status: os.stat_result) -> int:
        """Return the size of the disk in the file at ``path``. Raises OSError."""

    @abstractmethod
    def size_of_open(self, fd: int) -> int:
        """Return the size of the disk in an open file. Raises OSError."""

    @abstractmethod
    def complete(self, fd: int, size: int, *, whole: bool) -> None:
        """Make the raw data of ``fd`` a volume; ``whole`` if its space is allocated. Raises OSError."""

    @abstractmethod
    def may_be(self, fd: int) -> bool:
        """Return whether the open file can be a volume of this format. Raises OSError."""


class Raw(VolumeFormat):
    """The bytes of the disk."""

    name = "raw"

    def rounded(self, size: int) -> int:
        return size

    def extra_bytes(self, size: int) -> int:  # noqa: ARG002
        return 0

    def size_of(self, path: Path, status: os.stat_result) -> int:  # noqa: ARG002
        return status.st_size

    def size_of_open(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def complete(self, fd: int, size: int, *, whole: bool) -> None:
        pass

    def may_be(self, fd: int) -> bool:  # noqa: ARG002
        return True


class Qcow2(VolumeFormat):
    """QEMU's format, version 3. A foreign file that is no qcow2 image has its own size."""

    name = "qcow2"

    def rounded(self, size: int) -> int:
        return qcow2.rounded(size)

    def extra_bytes(self, size: int) -> int:
        return qcow2.metadata_bytes(size)

    def size_of(self, path: Path, status: os.stat_result) -> int:
        header = qcow2.header_of(path)
        return status.st_size if header is None else header.size

    def size_of_open(self, fd: int) -> int:
        header = qcow2.read_header(fd)
        return os.fstat(fd).st_size if header is None else header.size

    def complete(self, fd: int, size: int, *, whole: bool) -> None:
        qcow2.wrap(fd, size, whole=whole)

    def may_be(self, fd: int) -> bool:
        return qcow2.read_header(fd) is not None


FORMATS: dict[str, VolumeFormat] = {one.name: one for one in (Raw(), Qcow2())}
