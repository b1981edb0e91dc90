"""Interface of converters, which write an image of some format to a device as raw bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from provisioner.contracts.types import Device, Finding


class ImageView(Protocol):
    """An image in the cache, or one that is still being downloaded into it.

    ``fd`` is an open descriptor of the file; it stays valid if the file is renamed or removed. It belongs to the view:
    read it with ``os.pread`` only, and never close it. ``size`` is the length of the complete file in bytes,
    ``virtual_size`` the size of the disk it contains, ``format`` the detected format.
    """

    @property
    def fd(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def virtual_size(self) -> int: ...
    @property
    def available(self) -> int:
        """Return the offset before which every byte is in the file. May be read from any thread."""

    async def arrived(self, start: int, stop: int) -> None:
        """Wait until the bytes ``[start, stop)`` are in the file. Raises the error that ended the download."""

    async def ahead(self, start: int, stop: int) -> bytes | None:
        """Fetch the bytes ``[start, stop)`` ahead of the download; None if they cannot be fetched separately.

        For the format's tables. Like all other data, they are untrusted until the image is verified.
        """

    def check(self, start: int, data: memoryview) -> None:
        """Raise DamagedImageError if ``data``, just read at ``start``, differs from what was verified.

        For a converter that ``checks``. May be called from any thread; blocks briefly. Does nothing during the
        download, because the image's digest covers the data then.
        """

    def check_zeros(self, start: int, stop: int) -> None:
        """Raise DamagedImageError if a hole, taken for zeros without being read, was not verified as zeros."""

    def check_all(self, check: Callable[[], None]) -> None:
        """Raise DamagedImageError if the file was changed. Blocks; ``check`` is called often and may raise to stop."""

    def spent(self, start: int, stop: int) -> None:
        """Allow dropping ``[start, stop)`` from memory: it is not read again. From any thread; cheap."""


class Converter(ABC):
    """Writes images to devices.

    ``formats`` are the image formats it reads. A converter that ``streams`` is started during the download and awaits
    ``arrived`` before each read; any other gets the complete image. A converter that ``checks`` calls the view's
    ``check`` for everything it reads; for any other the whole image is checked beforehand.
    """

    formats: ClassVar[frozenset[str]]
    streams: ClassVar[bool] = False
    checks: ClassVar[bool] = False

    @abstractmethod
    async def convert(self, view: ImageView, device: Device, report: Callable[[int], None]) -> None:
        """Write the image's disk to the first ``view.virtual_size`` bytes of ``device``.

        Zeros of the image are skipped if ``device.reads_zero``, else written. Returns when the data is on stable
        storage. ``report(done)`` takes the progress in bytes of the virtual size and may be called from any thread.
        After a cancel, no thread and no process keeps running. Raises ConvertError, CorruptImageError, NoSpaceError or
        ToolError.
        """

    async def diagnose(self) -> Sequence[Finding]:
        """Return the findings of ``lvp doctor`` about this converter on this host. Changes nothing."""
        return ()

    async def aclose(self) -> None:
        """Release the converter's resources. Called once, at shutdown."""
