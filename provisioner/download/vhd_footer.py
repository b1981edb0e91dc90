"""Fixed VHDs: a raw disk followed by a footer, which is not part of the disk. No I/O.

Nothing at the beginning of the file tells one from a raw disk, so the end of the file decides.
"""

from __future__ import annotations

import struct

from provisioner.contracts import MIB

FOOTER = 512
# Microsoft's Virtual Hard Disk Image Format Specification: cookie, size of the disk, type (2: fixed) and checksum.
_COOKIE, _FIXED = b"conectix", 2
_SIZE_AT, _TYPE_AT, _SUM_AT = 48, 60, 64


def disk_bytes(end: bytes, file_size: int) -> int:
    """Return how many bytes of a raw file are its disk. ``end``: its last FOOTER bytes."""
    if len(end) < FOOTER or end[: len(_COOKIE)] != _COOKIE:
        return file_size
    (size,), (kind, checksum) = struct.unpack_from(">Q", end, _SIZE_AT), struct.unpack_from(">II", end, _TYPE_AT)
    summed = sum(end) - sum(end[_SUM_AT : _SUM_AT + 4])
    is_footer = (size, kind, checksum) == (file_size - FOOTER, _FIXED, summed ^ 0xFFFFFFFF)
    return size if is_footer else file_size


def may_have_footer(file_name: str, file_size: int | None) -> bool:
    """Return whether it is worth to wait for the end of a raw file before its volume's size is checked.

    Azure's images are whole MiB with a footer.
    """
    return ".vhd" in file_name.lower() or (file_size is not None and file_size % MIB == FOOTER)
