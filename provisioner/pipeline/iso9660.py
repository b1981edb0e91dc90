"""Writes a small ISO 9660 image of a few files in one directory, with Rock Ridge and Joliet names. Pure.

ISO 9660 itself (ECMA-119) allows names such as ``USER_DAT;1`` only. Rock Ridge (RRIP 1991A) and Joliet each add the
real names: Linux and the BSDs read the first, Windows reads the second.

Sectors: 0-15 empty, 16-18 descriptors, 19-22 path tables, 23 and 24 the directory with and without Joliet, then files.
"""

from __future__ import annotations

import re
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTOR = 2048
_TABLES, _DIRECTORY, _JOLIET_DIRECTORY, _FIRST_FILE = 19, 23, 24, 25
_DIRECTORY_MODE, _FILE_MODE = 0o040555, 0o100444
_NO_DATE = b"0" * 16 + b"\0"
# Joliet's escape sequence for UCS-2 level 3.
_JOLIET = b"%/E"


class _File(NamedTuple):
    name: str
    sector: int
    size: int


def iso9660(label: str, files: Mapping[str, bytes], created_at: float) -> bytes:
    """Return an image of whole sectors with that volume label.

    ``label`` is at most 11 upper-case letters and digits, so that it reads the same with Joliet. The names of the
    files are ASCII, and their first 8 characters differ. ``created_at``: seconds since the epoch.
    """
    assert re.fullmatch(r"[A-Z0-9]{1,11}", label), label
    assert len({_short(name) for name in files}) == len(files)
    placed, sector = [], _FIRST_FILE
    for name, data in sorted(files.items()):
        placed.append(_File(name, sector, len(data)))
        sector += _sectors(len(data))
    date = time.gmtime(created_at)
    return b"".join((
        bytes(16 * SECTOR),
        _descriptor(label, sector, date, joliet=False),
        _descriptor(label, sector, date, joliet=True),
        _padded(b"\xffCD001\x01"),
        *(_padded(_path_table(at, order)) for at in (_DIRECTORY, _JOLIET_DIRECTORY) for order in "<>"),
        _padded(_directory(_DIRECTORY, placed, date, joliet=False)),
        _padded(_directory(_JOLIET_DIRECTORY, placed, date, joliet=True)),
        *(_padded(files[file.name]) for file in placed),
    ))  # fmt: skip


def _sectors(size: int) -> int:
    return -(-size // SECTOR)


def _padded(data: bytes) -> bytes:
    return data.ljust(_sectors(len(data)) * SECTOR, b"\0")


def _both(number: int) -> bytes:
    """Return the number in both byte orders, 32 bits each."""
    return struct.pack("<I", number) + struct.pack(">I", number)


def _both16(number: int) -> bytes:
    return struct.pack("<H", number) + struct.pack(">H", number)


def _short(name: str) -> str:
    """Return a name that plain ISO 9660 allows."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper())[:8] + ".;1"


def _descriptor(label: str, sectors: int, date: time.struct_time, *, joliet: bool) -> bytes:
    """Return the primary or the Joliet volume descriptor."""

    def text(value: str, size: int) -> bytes:
        blank = " ".encode("utf-16-be") if joliet else b" "
        coded = value.encode("utf-16-be" if joliet else "ascii")
        return (coded + blank * size)[:size] if size % len(blank) == 0 else (coded + blank * size)[: size - 1] + b"\0"

    directory, table = (_JOLIET_DIRECTORY, _TABLES + 2) if joliet else (_DIRECTORY, _TABLES)
    created = time.strftime("%Y%m%d%H%M%S00", date).encode() + b"\0"
    return _padded(b"".join((
        b"\x02" if joliet else b"\x01", b"CD001\x01\0",
        text("", 32), text(label, 32), bytes(8), _both(sectors), (_JOLIET if joliet else b"").ljust(32, b"\0"),
        _both16(1), _both16(1), _both16(SECTOR), _both(len(_path_table(directory, "<"))),
        struct.pack("<II", table, 0), struct.pack(">II", table + 1, 0),
        _record(b"\0", directory, SECTOR, date, is_directory=True),
        *(text("", 128) for _ in range(4)), *(text("", 37) for _ in range(3)),
        created, created, _NO_DATE, _NO_DATE, b"\x01\0",
    )))  # fmt: skip


def _path_table(directory: int, order: str) -> bytes:
    """Return the path table: the root directory alone. ``order`` is struct's character for the byte order."""
    return struct.pack(f"{order}BBIHBx", 1, 0, directory, 1, 0)


def _directory(at: int, files: list[_File], date: time.struct_time, *, joliet: bool) -> bytes:
    modes = b"" if joliet else _posix(_DIRECTORY_MODE, 2)
    marks = b"" if joliet else b"SP\x07\x01\xbe\xef\0" + modes + b"ER\x12\x01\x0a\0\0\x01RRIP_1991A"
    records = [
        _record(b"\0", at, SECTOR, date, marks, is_directory=True),
        _record(b"\x01", at, SECTOR, date, modes, is_directory=True),
    ]
    for file in files:
        name = file.name.encode("utf-16-be") if joliet else _short(file.name).encode()
        extra = b"" if joliet else _posix(_FILE_MODE, 1) + _real_name(file.name.encode())
        records.append(_record(name, file.sector, file.size, date, extra, is_directory=False))
    directory = b"".join(records)
    assert len(directory) <= SECTOR
    return directory


def _record(
    name: bytes, sector: int, size: int, date: time.struct_time, extra: bytes = b"", *, is_directory: bool
) -> bytes:
    """Return a directory record. ``extra`` is its Rock Ridge part."""
    stamp = struct.pack("BBBBBBB", date.tm_year - 1900, date.tm_mon, date.tm_mday, date.tm_hour, date.tm_min,
                        date.tm_sec, 0)  # fmt: skip
    flags = struct.pack("BBB", 2 if is_directory else 0, 0, 0)
    named = struct.pack("B", len(name)) + name + (b"\0" if len(name) % 2 == 0 else b"")
    body = b"\0" + _both(sector) + _both(size) + stamp + flags + _both16(1) + named + extra
    body += b"\0" * (len(body) % 2 == 0)  # with the length byte in front, an even number
    return struct.pack("B", len(body) + 1) + body


def _posix(mode: int, links: int) -> bytes:
    """Return Rock Ridge's PX: mode, number of links, and root as the owner."""
    return b"PX\x24\x01" + _both(mode) + _both(links) + _both(0) + _both(0)


def _real_name(name: bytes) -> bytes:
    """Return Rock Ridge's NM."""
    return b"NM" + struct.pack("BBB", 5 + len(name), 1, 0) + name
