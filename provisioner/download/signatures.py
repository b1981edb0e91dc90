"""Recognizes files that are not disk images: archives, compressions, documents, foreign disk formats.

``wrapper_of`` names what is extracted, ``not_a_disk`` what is rejected. Otherwise every unknown file would count as a
raw disk and be copied to the volume. A raw disk has no signature: it may begin with boot code, a partition table, a
file system or zeros.
"""

from __future__ import annotations

import re

from provisioner.download.zstd_frames import MAGIC as ZSTD_MAGIC
from provisioner.download.zstd_frames import after_skippable_frames

# Bytes that ``not_a_disk`` looks at, enough for a tar archive's header.
HEAD = 1024
_SECTOR = 512
_BOOT_SIGNATURE = b"\x55\xaa"

# The first bytes of the wrappers that always begin with the same ones.
MAGICS = {
    "gz": b"\x1f\x8b\x08", "xz": b"\xfd7zXZ\x00", "zst": ZSTD_MAGIC, "bz2": b"BZh", "lz4": b"\x04\x22\x4d\x18",
    "zip": b"PK\x03\x04",
}  # fmt: skip
HTML, TEXT = "an HTML page", "a text file"

# Sources: the formats' own specifications, and file(1)'s database for those that have none.
_MAGICS: dict[bytes, str] = {
    b"PK\x05\x06": "an empty zip archive",
    b"PK\x07\x08": "a zip archive in several parts",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"\x02\x21\x4c\x18": "compressed with lz4 in its legacy format (lz4 -l)",
    b"\x89LZO\x00\r\n\x1a\n": "compressed with lzop",
    b"LZIP": "compressed with lzip",
    b"\xff\x06\x00\x00sNaPpY": "compressed with snappy",
    b"!<arch>\n": "an ar archive (such as a .deb package)",
    b"\xed\xab\xee\xdb": "an rpm package",
    b"070701": "a cpio archive",
    b"070702": "a cpio archive",
    b"070707": "a cpio archive",
    b"MSCF\0\0\0\0": "a cabinet archive",
    b"xar!": "a xar archive",
    b"MSWIM\0\0\0": "a wim archive",
    b"%PDF-": "a PDF document",
    b"%!PS": "a PostScript document",
    b"\x89PNG\r\n\x1a\n": "a picture",
    b"GIF8": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x7fELF": "a program",
    b"SQLite format 3\0": "a database",
    b"\x3a\xff\x26\xed": "an Android sparse image",
    b"WithoutFreeSpace": "a Parallels disk image",
    b"WithouFreSpacExt": "a Parallels disk image",
    b"Bochs Virtual HD Image": "a Bochs disk image",
    b"COWD": "a VMware ESX sparse disk image",
    b"OOOM": "a User Mode Linux disk image",
    b"MComprHD": "a CHD disk image",
    b"EVF\x09\x0d\x0a\xff\x00": "an EnCase disk image",
    b"VMA\0": "a Proxmox backup",
    b"partclone-image": "a partclone image",
    b"PaRtImAgE-VoLuMe": "a partimage image",
}
# Two bytes are weaker evidence than a boot sector's signature.
_SHORT_MAGICS: dict[bytes, str] = {b"\x1f\x9d": "compressed with compress (.Z)", b"\x1f\xa0": "compressed (.Z)"}
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!doctype html|<html|<head|<body|<script)", re.IGNORECASE)
_DESCRIPTOR = re.compile(rb"\s*#\s*disk descriptorfile", re.IGNORECASE)
_TEXT = re.compile(rb"[\t\n\r\f\x20-\x7e\x80-\xff]+")
# liblzma recognizes the old .lzma format by the same conditions.
_LZMA_DICTIONARIES = {2**power + extra for power in range(12, 32) for extra in (0, 2 ** (power - 1))}
_LZMA_LARGEST = 2**38


def wrapper_of(beginning: bytes | bytearray) -> str | None:
    """Return the compression or archive that a file's first HEAD bytes (or all of it) show, or None.

    The compressions are ``gz``, ``xz``, ``zst``, ``bz2``, ``lz4`` and ``lzma``, the archives ``tar`` and ``zip``.
    """
    head = bytes(beginning[:HEAD])
    for name, magic in MAGICS.items():
        if head.startswith(magic):
            return name
    if (skipped := after_skippable_frames(head)) is not None:
        # lz4 has the same skippable frames. If there is nothing else yet, it is taken as zstd.
        return "lz4" if head.startswith(MAGICS["lz4"], skipped) else "zst"
    if _is_tar(head[:_SECTOR]):
        return "tar"
    return "lzma" if not _is_boot_sector(head) and _is_lzma(head) else None


def not_a_disk(head: bytes) -> str | None:
    """Return what a file is whose first HEAD bytes (or all of it) are ``head``; None if it may be a disk.

    The result completes the sentence "this is ...". Files of a known wrapper are not looked for.
    """
    for magic, what in _MAGICS.items():
        if head.startswith(magic):
            return what
    if not _is_boot_sector(head):
        for magic, what in _SHORT_MAGICS.items():
            if head.startswith(magic):
                return what
    if _MARKUP.match(head):
        return HTML
    return TEXT if _is_text(head[:_SECTOR]) else None


def _is_boot_sector(head: bytes) -> bool:
    return head[_SECTOR - 2 : _SECTOR] == _BOOT_SIGNATURE


def _is_tar(block: bytes) -> bool:
    """Whether the block is a member's header: its checksum is right. Works for every variant of tar."""
    if len(block) < _SECTOR or not block[0]:
        return False
    digits = block[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,7}", digits):
        return False
    unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    # Some old programs computed the sum with signed bytes.
    signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    return int(digits, 8) in {unsigned, signed}


def _is_lzma(head: bytes) -> bool:
    if len(head) < 14 or head[0] >= 9 * 5 * 5 or head[13]:  # the range coder's first byte is always 0
        return False
    dictionary, size = int.from_bytes(head[1:5], "little"), int.from_bytes(head[5:13], "little")
    return dictionary in _LZMA_DICTIONARIES and (size == 2**64 - 1 or 0 < size < _LZMA_LARGEST)


def _is_text(head: bytes) -> bool:
    """Whether it is lines of text, JSON or XML: no disk begins with a sector of text only."""
    if not _TEXT.fullmatch(head) or _DESCRIPTOR.match(head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.end < len(head):  # a character may be cut off at the end
            return False
    return b"\n" in head or head.lstrip()[:1] in {b"<", b"{", b"["}
