"""Streams the one file out of a zip archive, stored or deflated, without seeking.

The central directory at the end must say the same as the headers in front of the data: readers that trust only one of
the two would see another file. Encrypted archives and other compression methods are rejected.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from isal import igzip_lib, isal_zlib

from provisioner.contracts import MIB
from provisioner.contracts.errors import UnsafeImageError
from provisioner.download.archives import ArchiveReader, check_name, shown

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

_PIECE = 1 * MIB
_INPUT = 64 * 1024
# Fields after the signature (APPNOTE 6.3.10, 4.3.7 and 4.3.12).
_LOCAL = struct.Struct("<HHHHHIIIHH")
_CENTRAL = struct.Struct("<HHHHHHIIIHHHHHII")
_END = struct.Struct("<HHHHIIH")
_ENCRYPTED, _DESCRIPTOR = 1 << 0 | 1 << 6 | 1 << 13, 1 << 3
_STORED, _DEFLATED = 0, 8
_METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz", 98: "PPMd", 99: "AES encryption"}
_ZIP64 = 0xFFFFFFFF
_ZIP64_EXTRA = 1
_MAX_END_RECORD = 64 * 1024
_LINK, _TYPE_MASK, _UNIX = 0o120000, 0o170000, 3


@dataclass(slots=True)
class _Entry:
    """One file: what its header claims, then what was found. Sizes in bytes."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int

    @property
    def is_folder(self) -> bool:
        return self.name.endswith(b"/")


@dataclass(slots=True)
class _Seen:
    """What was read so far: the entries that the central directory has not named yet, and the file among all."""

    unlisted: dict[bytes, _Entry] = field(default_factory=dict)
    disk: _Entry | None = None
    in_directory: bool = False
    position: int = 0  # where the next header begins


def zip_disk(stream: io.RawIOBase) -> Iterator[bytes]:
    """Yield the archive's only file in pieces of at most 1 MiB; an empty piece is progress without output.

    Raises UnsafeImageError; EOFError if the archive is truncated; ValueError if it is malformed.
    """
    reader, seen = ArchiveReader(stream), _Seen()
    while (signature := reader.take(4)) != b"PK\5\6":
        reader.count_header()
        if signature == b"PK\3\4" and not seen.in_directory:
            yield from _local(reader, seen)
        elif signature == b"PK\1\2":
            _central(reader, seen)
        elif signature == b"PK\6\6":  # zip64's end record: its numbers are those already counted
            (length,) = struct.unpack("<Q", reader.take(8))
            _take_at_most(reader, length)
        elif signature == b"PK\6\7":
            reader.take(16)
        else:
            raise ValueError("the zip archive contains an unknown record")
        yield b""
    _finish(reader, seen)
    # Reading on to the end also verifies the compressed file around the archive.
    while piece := reader.rest(_PIECE):
        if piece.strip(b"\0"):  # a second directory, which other readers would find first
            raise UnsafeImageError("other data follows the zip archive")
        reader.count_beside(len(piece))
        yield b""


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _take_at_most(reader: ArchiveReader, length: int) -> None:
    if length > _MAX_END_RECORD:
        raise ValueError("a record of the zip archive is too long")
    reader.take(length)


def _local(reader: ArchiveReader, seen: _Seen) -> Iterator[bytes]:
    """Read one file or folder with its header."""
    _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack(reader.take(_LOCAL.size))
    name, extra = reader.take(name_length), reader.take(extra_length)
    size, packed = _zip64(extra, size, packed)
    entry = _Entry(name, flags, method, crc, packed, size, seen.position)
    if flags & _ENCRYPTED:
        raise UnsafeImageError("the zip archive is encrypted; provide it unencrypted")
    check_name(_text(name))
    if name in seen.unlisted:
        raise UnsafeImageError(f"the zip archive contains {shown(_text(name))} twice")
    seen.unlisted[name] = entry
    if not entry.is_folder:
        if seen.disk is not None:
            raise UnsafeImageError(
                f"the zip archive contains more than one file ({shown(_text(seen.disk.name))} and "
                f"{shown(_text(name))}); provide only the disk image"
            )
        seen.disk = entry
    yield from _data(reader, entry)
    seen.position += 4 + _LOCAL.size + name_length + extra_length + entry.packed
    if flags & _DESCRIPTOR:
        seen.position += _descriptor(reader, entry)


def _zip64(extra: bytes, *values: int) -> list[int]:
    """Return the values; those that do not fit 32 bits are in the extra field, in this order."""
    found, position = list(values), 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        position += 4
        if kind == _ZIP64_EXTRA:
            wide = iter(struct.iter_unpack("<Q", extra[position : position + length // 8 * 8]))
            for index, value in enumerate(values):
                if value == _ZIP64:
                    (found[index],) = next(wide, (value,))
        position += length
    return found


def _data(reader: ArchiveReader, entry: _Entry) -> Iterator[bytes]:
    """Yield the entry's content; afterwards the entry has its true sizes and checksum."""
    claimed, late = (entry.crc, entry.packed, entry.size), bool(entry.flags & _DESCRIPTOR)
    if entry.method == _DEFLATED:
        pieces = _inflated(reader, entry)
    elif entry.method == _STORED and (not late or entry.packed or entry.is_folder):
        pieces = _stored(reader, entry.packed)
    elif entry.method == _STORED:
        raise UnsafeImageError("the zip archive does not state its file's length; create it from a file, not a pipe")
    else:
        method = _METHODS.get(entry.method, f"method {entry.method}")
        raise UnsafeImageError(f"the zip archive uses {method}; create it with deflate")
    crc = size = 0
    for piece in pieces:
        crc = isal_zlib.crc32(piece, crc)
        size += len(piece)
        if entry.is_folder and size:
            raise ValueError("a folder in the zip archive has content")
        yield piece
    if entry.method == _STORED:
        entry.packed = size
    entry.crc, entry.size = crc, size
    if not late and claimed != (entry.crc, entry.packed, entry.size):
        raise ValueError("the checksum or the length of the file in the zip archive is wrong")


def _stored(reader: ArchiveReader, left: int) -> Iterator[bytes]:
    while left:
        piece = reader.some(min(left, _PIECE))
        left -= len(piece)
        yield piece


def _inflated(reader: ArchiveReader, entry: _Entry) -> Iterator[bytes]:
    """Inflate up to the end of the deflate stream; set ``entry.packed`` to its true length."""
    inflater, packed = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE), 0
    while not inflater.eof:
        data = reader.some(_INPUT) if inflater.needs_input else b""
        packed += len(data)
        yield inflater.decompress(data, _PIECE)
    reader.put_back(inflater.unused_data)
    entry.packed = packed - len(inflater.unused_data)


def _descriptor(reader: ArchiveReader, entry: _Entry) -> int:
    """Check the data descriptor after an entry, in any of its four forms; return its length."""
    head = bytearray()
    for mark in (b"", b"PK\7\x08"):
        for sizes in ("<IQQ", "<III"):
            try:
                wanted = mark + struct.pack(sizes, entry.crc, entry.packed, entry.size)
            except struct.error:  # larger than 4 GiB
                continue
            if len(head) < len(wanted):
                head += reader.take(len(wanted) - len(head))
            if head[: len(wanted)] == wanted:
                reader.put_back(bytes(head[len(wanted) :]))
                return len(wanted)
    raise ValueError("the checksum or the length of the file in the zip archive is wrong")


def _central(reader: ArchiveReader, seen: _Seen) -> None:
    """Compare one entry of the central directory with what was read."""
    made_by, _, flags, method, _, _, crc, packed, size, *lengths, _, _, attributes, offset = _CENTRAL.unpack(
        reader.take(_CENTRAL.size)
    )
    name, extra, _ = (reader.take(length) for length in lengths)
    size, packed, offset = _zip64(extra, size, packed, offset)
    if made_by >> 8 == _UNIX and attributes >> 16 & _TYPE_MASK == _LINK:
        raise UnsafeImageError("the zip archive contains a link; provide only the disk image")
    seen.in_directory = True
    entry = seen.unlisted.pop(name, None)
    # The other flags differ between the two headers of some programs.
    if flags & _ENCRYPTED or entry != _Entry(name, entry.flags if entry else 0, method, crc, packed, size, offset):
        raise UnsafeImageError("the zip archive's directory contradicts its files")


def _finish(reader: ArchiveReader, seen: _Seen) -> None:
    """Read the end record and check that nothing is missing."""
    *_, comment = _END.unpack(reader.take(_END.size))
    reader.take(comment)
    if seen.disk is None:
        raise UnsafeImageError("the zip archive contains no file")
    if seen.unlisted:
        raise UnsafeImageError("the zip archive's directory contradicts its files")
