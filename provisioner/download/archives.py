"""What tar and zip archives have in common: exact reads of a stream, and the rules for members.

An archive must contain one disk. Members are streamed; their names are never used as paths. Whatever an archive claims,
memory, the number of its headers and the bytes outside the disk are bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from provisioner.contracts import MIB
from provisioner.contracts.errors import UnsafeImageError

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

# An appliance has a handful of members. More are a file tree, or an attempt to keep the service busy.
MAX_HEADERS = 256
# Bytes outside the disk: descriptions and signatures beside it, and padding after the archive's end.
MAX_BESIDE = 64 * MIB
_LONGEST_NAME = 80


class ArchiveReader:
    """Reads exact numbers of bytes from a stream that may return fewer, and counts what is read beside the disk."""

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream = stream
        self._returned = b""
        self._beside = 0
        self._headers = 0

    def some(self, most: int) -> bytes:
        """Return up to ``most`` bytes, at least one. Raises EOFError at the end."""
        data = self.rest(most)
        if not data:
            raise EOFError("the file ends too early")
        return data

    def rest(self, most: int) -> bytes:
        """Return up to ``most`` bytes, none only at the end."""
        if not self._returned:
            return self._stream.read(most) or b""
        data, self._returned = self._returned[:most], self._returned[most:]
        return data

    def take(self, count: int) -> bytes:
        """Return exactly ``count`` bytes, a number that the caller has bounded. Raises EOFError."""
        data = bytearray()
        while len(data) < count:
            data += self.some(count - len(data))
        return bytes(data)

    def put_back(self, data: bytes) -> None:
        """Return ``data`` again by the next read."""
        self._returned = data + self._returned

    def skip(self, count: int) -> Iterator[bytes]:
        """Skip ``count`` bytes beside the disk, yielding nothing after each read.

        Raises EOFError, or UnsafeImageError beyond MAX_BESIDE.
        """
        self.count_beside(count)
        while count:
            count -= len(self.some(min(count, MIB)))
            yield b""

    def count_beside(self, count: int) -> None:
        """Count bytes beside the disk. Raises UnsafeImageError beyond MAX_BESIDE."""
        self._beside += count
        if self._beside > MAX_BESIDE:
            raise UnsafeImageError(f"the archive contains more than {MAX_BESIDE // MIB} MiB beside the disk image")

    def count_header(self) -> None:
        """Count one header. Raises UnsafeImageError beyond MAX_HEADERS."""
        self._headers += 1
        if self._headers > MAX_HEADERS:
            raise UnsafeImageError(f"the archive has more than {MAX_HEADERS} members; provide only the disk image")


def shown(name: str) -> str:
    """Return a member's name for a message: printable and short."""
    text = name.encode("unicode_escape", "surrogateescape").decode("ascii", "replace")
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."


def check_name(name: str) -> None:
    """Raise UnsafeImageError for a path that leads out of the folder it would be extracted into.

    Nothing is extracted under a member's name, but such an archive is made to attack.
    """
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or "\0" in name:
        raise UnsafeImageError(f"the archive contains the unsafe path {shown(name)}")
