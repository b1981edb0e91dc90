"""Streams the one disk out of a tar archive: V7, ustar, pax and GNU, also sparse as GNU tar and bsdtar write it.

Text files beside the disk, such as an OVA's description, are skipped. Links, devices and a second disk are rejected.
The standard library's reader is not used: it reads extended headers and sparse maps of any length into memory.
"""

from __future__ import annotations

import re
import tarfile
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from provisioner.contracts import MIB
from provisioner.contracts.errors import UnsafeImageError
from provisioner.download.archives import ArchiveReader, check_name, shown
from provisioner.download.signatures import HEAD, HTML, TEXT, not_a_disk

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

_BLOCK = 512
_PIECE = 1 * MIB
_ZEROS = bytes(_PIECE)
# Long names and pax records. A path has at most 4 KiB, extended attributes may take more.
_MAX_EXTENDED = 1 * MIB
# Each takes 16 bytes of memory; enough for a terabyte that alternates data and holes of 512 KiB.
_MAX_EXTENTS = 2**20
# Members beside the disk that are not text: an OVA's firmware variables, and the attributes that macOS adds.
_BESIDE = re.compile(r"(^|/)\._[^/]*$|\.nvram$", re.IGNORECASE)
_EXTENDED = {
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
}  # fmt: skip
_FILES = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE}
_LINKS = {tarfile.LNKTYPE, tarfile.SYMTYPE}
_SPECIAL = {tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE}


@dataclass(slots=True)
class _Member:
    """A member's header. ``extents`` are pairs of offset and length for a sparse file, else None."""

    name: str
    kind: bytes
    stored: int  # bytes in the archive, without padding
    real: int  # bytes of the file
    extents: array[int] | None = None


@dataclass(slots=True)
class _Extended:
    """What extended headers say about the next member."""

    name: str | None = None
    records: dict[str, str] = field(default_factory=dict)


def tar_disk(stream: io.RawIOBase, *, sparse: bool = True) -> Iterator[bytes]:
    """Yield the disk in pieces of at most 1 MiB; an empty piece is progress without output.

    ``sparse``: whether it may have holes, which take no bytes of the archive whatever their size. Raises
    UnsafeImageError; EOFError if the archive is truncated; ValueError if it is malformed.
    """
    reader, disk = ArchiveReader(stream), ""
    while (member := _next_member(reader)) is not None:
        padding = -member.stored % _BLOCK
        if member.kind == tarfile.DIRTYPE or _is_beside(reader, member):
            yield from reader.skip(member.stored + padding)
        elif disk:
            raise UnsafeImageError(
                f"the tar archive contains more than one disk image ({shown(disk)} and {shown(member.name)}); "
                "provide one of them"
            )
        else:
            disk = member.name
            if member.extents is not None and not sparse:
                raise UnsafeImageError("the tar archive contains a compressed image as a sparse file")
            yield from _content(reader, member)
            reader.take(padding)
        yield b""
    if not disk:
        raise UnsafeImageError("the tar archive contains no disk image")
    # Reading on to the end also verifies the compressed file around the archive.
    while piece := reader.rest(_PIECE):
        reader.count_beside(len(piece))
        yield b""


def _next_member(reader: ArchiveReader) -> _Member | None:
    """Read headers up to the next member's data; return None at the archive's end marker, a block of zeros."""
    extended = _Extended()
    while any(block := reader.take(_BLOCK)):
        reader.count_header()
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise ValueError(f"a member's header is damaged: {error}") from error
        if header.size < 0:
            raise ValueError("a member's size is negative")
        if header.type in _EXTENDED:
            _extend(extended, header.type, _extended_data(reader, header.size))
            continue
        name = extended.name or header.name
        _check_kind(header.type, name)
        return _sized(reader, block, _Member(name, header.type, header.size, header.size), extended.records)
    return None


def _extended_data(reader: ArchiveReader, size: int) -> bytes:
    if size > _MAX_EXTENDED:
        raise UnsafeImageError(f"an extended header of the tar archive has more than {_MAX_EXTENDED // MIB} MiB")
    return reader.take(size + -size % _BLOCK)[:size]


def _extend(extended: _Extended, kind: bytes, data: bytes) -> None:
    if kind == tarfile.GNUTYPE_LONGNAME:
        extended.name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    elif kind == tarfile.XGLTYPE:
        if any(key == "size" or key.startswith("GNU.sparse") for key in _records(data)):
            raise UnsafeImageError("a global header of the tar archive changes the size of its members")
    elif kind != tarfile.GNUTYPE_LONGLINK:
        extended.records |= _records(data)
        extended.name = extended.records.get("GNU.sparse.name") or extended.records.get("path") or extended.name


def _records(data: bytes) -> dict[str, str]:
    """Parse pax records: each is its length in decimal, a space, ``key=value`` and a newline."""
    found, start = {}, 0
    while start < len(data):
        space = data.find(b" ", start, start + 8)
        stop = start + _number(data[start:space] if space > 0 else b"")
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if stop <= space + 1 or data[stop - 1 : stop] != b"\n" or not equals:
            raise ValueError("a pax header is malformed")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        start = stop
    return found


def _number(text: str | bytes | None) -> int:
    """Return a decimal number. Raises ValueError."""
    if not text or len(text) > 19 or not text.isdigit():
        raise ValueError("a header of the tar archive has a malformed number")
    return int(text)


def _check_kind(kind: bytes, name: str) -> None:
    """Raise UnsafeImageError unless it is a regular file or a directory with a harmless name."""
    if kind in _LINKS:
        raise UnsafeImageError(f"the tar archive contains a link ({shown(name)}); provide only the disk image")
    if kind in _SPECIAL:
        raise UnsafeImageError(f"the tar archive contains a device or pipe ({shown(name)})")
    if kind != tarfile.DIRTYPE and kind not in _FILES:
        raise UnsafeImageError(f"the tar archive contains a member of an unsupported type ({shown(name)})")
    check_name(name)


def _sized(reader: ArchiveReader, block: bytes, member: _Member, records: dict[str, str]) -> _Member:
    """Return the member with its true sizes; read a sparse file's map."""
    if "size" in records:
        member.stored = member.real = _number(records["size"])
    if member.kind == tarfile.GNUTYPE_SPARSE:
        member.real, member.extents = _gnu_map(reader, block)
    elif records.get("GNU.sparse.major") == "1":
        member.real = _number(records.get("GNU.sparse.realsize"))
        member.extents, length = _pax_map(reader, member.stored)
        member.stored -= length
    elif any(key.startswith("GNU.sparse") for key in records):
        raise UnsafeImageError("the tar archive uses an old sparse format; create it with tar --sparse-version=1.0")
    if member.extents is not None:
        _check_extents(member)
    return member


def _gnu_map(reader: ArchiveReader, block: bytes) -> tuple[int, array[int]]:
    """Return the size and the map of a sparse file in GNU's old format: 4 extents here, 21 in each extension."""
    real, extents = tarfile.nti(block[483:495]), array("q")  # type: ignore[attr-defined]
    fields, extended = block[386:482], block[482]
    while True:
        for start in range(0, len(fields), 24):
            if fields[start] or fields[start + 12]:
                extents.extend(tarfile.nti(fields[at : at + 12]) for at in (start, start + 12))  # type: ignore[attr-defined]
        if not extended:
            return real, extents
        _check_count(len(extents) // 2)
        block = reader.take(_BLOCK)
        fields, extended = block[:504], block[504]


def _pax_map(reader: ArchiveReader, stored: int) -> tuple[array[int], int]:
    """Return the map at the start of a sparse file's data, and its length in bytes.

    The map is decimal numbers, one a line: how many extents, then each one's offset and length.
    """
    numbers, length, rest, wanted = array("q"), 0, b"", 1
    while len(numbers) < wanted:
        if length + _BLOCK > stored:
            raise ValueError("a sparse file's map is longer than its data")
        *lines, rest = (rest + reader.take(_BLOCK)).split(b"\n")
        length += _BLOCK
        for line in lines:
            if len(numbers) == wanted:  # the rest is padding
                break
            numbers.append(_number(line))
            if len(numbers) == 1:
                _check_count(numbers[0])
                wanted = 1 + 2 * numbers[0]
        if len(rest) > 20 and len(numbers) < wanted:
            raise ValueError("a sparse file's map is malformed")
    return numbers[1:], length


def _check_count(extents: int) -> None:
    if extents > _MAX_EXTENTS:
        raise UnsafeImageError(f"a sparse file in the tar archive has more than {_MAX_EXTENTS} parts")


def _check_extents(member: _Member) -> None:
    """Raise ValueError unless the extents are in order, inside the file, and as long as the stored data."""
    position = total = 0
    extents = member.extents or array("q")
    for offset, length in zip(extents[::2], extents[1::2], strict=True):
        if offset < position or length < 0:
            raise ValueError("a sparse file's map is out of order")
        position = offset + length
        total += length
    if position > member.real or total != member.stored:
        raise ValueError("a sparse file's map contradicts its size")


def _is_beside(reader: ArchiveReader, member: _Member) -> bool:
    """Whether the member is a description or the like, not a disk."""
    if not member.real or _BESIDE.search(member.name):
        return True
    if member.extents is not None:
        return False
    head = reader.take(min(HEAD, member.stored))
    reader.put_back(head)
    return not_a_disk(head) in {HTML, TEXT}


def _content(reader: ArchiveReader, member: _Member) -> Iterator[bytes]:
    extents = array("q", (0, member.stored)) if member.extents is None else member.extents
    position = 0
    for offset, length in zip(extents[::2], extents[1::2], strict=True):
        yield from _zeros(offset - position)
        left = length
        while left:
            piece = reader.some(min(left, _PIECE))
            left -= len(piece)
            yield piece
        position = offset + length
    yield from _zeros(member.real - position)


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield _ZEROS[: min(count, _PIECE)]
        count -= _PIECE
