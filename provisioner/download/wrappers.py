"""The compressions and archives around a disk image: which may be nested, and how to stream the disk out of them.

A name such as ``tar.gz`` lists the wrappers like a file's extensions, the outermost last.
"""

from __future__ import annotations

import io
from contextlib import ExitStack
from typing import TYPE_CHECKING

from provisioner.contracts.errors import UnsafeImageError
from provisioner.download.decompressors import Decompressor, decompressor
from provisioner.download.tar_archive import tar_disk
from provisioner.download.zip_archive import zip_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ARCHIVES = {"tar", "zip"}
# For messages, in the words of "inside ...".
TOOLS = {
    "gz": "gzip", "xz": "xz", "bz2": "bzip2", "zst": "zstd", "lz4": "lz4", "lzma": "lzma", "tar": "a tar archive",
    "zip": "a zip archive",
}  # fmt: skip


def names(packing: str) -> list[str]:
    """Return the wrappers of a name, the outermost first."""
    return packing.split(".")[::-1]


def nested(packing: str | None, inner: str) -> str:
    """Return the name with one more wrapper, found inside the others.

    Raises UnsafeImageError beyond one compression and one archive, the deepest that publishers use.
    """
    if packing is None:
        return inner
    archives = [name in ARCHIVES for name in (*names(packing), inner)]
    if archives.count(True) > 1:
        raise UnsafeImageError("the image is in an archive inside another archive; provide the inner one")
    if archives.count(False) > 1:
        raise UnsafeImageError("the image is compressed twice; provide it compressed once")
    return f"{inner}.{packing}"


def inside(packing: str) -> str:
    """Return the words for what is inside the wrappers, such as `` inside a tar archive inside gzip``."""
    return "".join(f" inside {TOOLS[name]}" for name in reversed(names(packing)))


def unpacker(packing: str, packed: io.RawIOBase, ignored: Callable[[], None] = lambda: None) -> Decompressor:
    """Return a decompressor that reads the disk out of all wrappers of ``packed``."""
    stream, layers, chain = packed, names(packing), ExitStack()
    for name in layers:
        step: Decompressor
        if name == "tar":
            step = _Archive(tar_disk(stream, sparse=name == layers[-1]))
        elif name == "zip":
            step = _Archive(zip_disk(stream))
        else:
            step = decompressor(name, stream, ignored)
        chain.callback(step.close)
        stream = _Output(step)
    return _Chain(step, chain)


class _Archive:
    """The disk of an archive as a Decompressor."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces: Iterator[bytes] | None = pieces

    def step(self) -> bytes | None:
        assert self._pieces is not None
        return next(self._pieces, None)

    def close(self) -> None:
        self._pieces = None


class _Chain:
    """The innermost decompressor, closed together with those around it."""

    def __init__(self, innermost: Decompressor, chain: ExitStack) -> None:
        self.step = innermost.step
        self.close = chain.close


class _Output(io.RawIOBase):
    """The output of a decompressor as a stream. A read without output keeps reading its input, which may be stopped."""

    def __init__(self, stream: Decompressor) -> None:
        super().__init__()
        self._stream = stream
        self._held = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        while not self._held:
            block = self._stream.step()
            if block is None:
                return b""
            self._held = memoryview(block)
        data, self._held = bytes(self._held[:size]), self._held[size:]
        return data
