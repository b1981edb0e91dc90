"""Converters: put an image of some format onto a device as raw bytes. Owns the interface only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from provisioner.contracts.types import Device, Finding


class ImageView(Protocol):
    """An image in the cache, or on its way into it.

    ``fd`` is an open descriptor of the file and stays the same file whatever happens to its name. It belongs
    to the view: read it with ``os.pread`` only, never close it. ``size`` is the whole file's length in bytes,
    ``virtual_size`` that of the disk inside, ``format`` what the file was found to be.
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
        """Every byte before this offset is in the file. May be read from any thread."""

    async def arrived(self, start: int, stop: int) -> None:
        """Return when the bytes ``[start, stop)`` are in the file. Raises what ended the download."""

    async def ahead(self, start: int, stop: int) -> bytes | None:
        """The bytes ``[start, stop)`` before their turn, where they can be fetched by themselves; None where not.

        For tables. What is made of them counts as little as all the rest until the whole image is verified.
        """

    def check(self, start: int, data: memoryview) -> None:
        """Raise DamagedImageError if ``data``, just read from ``start``, is not what was verified.

        For a converter that ``checks``. From any thread; blocks, but briefly. Does nothing while the image arrives: its
        digest covers it then.
        """

    def check_zeros(self, start: int, stop: int) -> None:
        """The same for a hole in the file that was taken for zeros without being read."""

    def check_all(self, check: Callable[[], None]) -> None:
        """The same for the whole file. Blocks; ``check`` is called now and then and may raise to stop."""

    def spent(self, start: int, stop: int) -> None:
        """Nobody will read ``[start, stop)`` again: its memory may be given back. From any thread; cheap."""


class Converter(ABC):
    """Writes images onto devices.

    ``formats`` are the image formats it reads. A converter that ``streams`` reads a view only after
    ``arrived`` says so and is started while the image is still coming; any other gets it whole. One that ``checks``
    calls the view's ``check`` for all it reads; for any other the whole image is checked before.
    """

    formats: ClassVar[frozenset[str]]
    streams: ClassVar[bool] = False
    checks: ClassVar[bool] = False

    @abstractmethod
    async def convert(self, view: ImageView, device: Device, report: Callable[[int], None]) -> None:
        """Make the first ``view.virtual_size`` bytes of ``device`` those of the image.

        Zeros of the image are skipped where ``device.reads_zero`` and written otherwise. Returns only when
        all is on stable storage. ``report(done)`` takes bytes of the virtual size and may be called from
        any thread. When cancelled, nothing of it runs on: no thread, no process. Raises ConvertError,
        CorruptImageError, NoSpaceError or ToolError.
        """

    async def diagnose(self) -> Sequence[Finding]:
        """What ``lvp doctor`` should say of this converter on this host. Changes nothing."""
        return ()

    async def aclose(self) -> None:
        """Give back what the converter holds. Called once, at the end."""
