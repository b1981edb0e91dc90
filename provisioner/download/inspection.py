"""Detects an image's format from its first bytes, and whether it is safe to convert.

Detection uses the format inspector of oslo.utils, on which the OpenStack services rely and which covers the known CVEs.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from provisioner.contracts import MIB
from provisioner.contracts.errors import UnsafeImageError
from provisioner.download.decompress import beginning_of
from provisioner.download.signatures import HEAD, HTML, TEXT, not_a_disk, wrapper_of
from provisioner.download.wrappers import ARCHIVES, inside, names, nested

if TYPE_CHECKING:
    from oslo_utils.imageutils.format_inspector import FileInspector, InspectWrapper

# No inspector needs bytes beyond this offset (ISO: 32 KiB; VHDX: metadata, which QEMU puts at 2 MiB).
WINDOW = 4 * 1024 * 1024
_STEP = 64 * 1024
# Raw disks: a partition table or an ISO file system is content, not an image format.
_RAW = {"raw", "gpt", "iso"}
# qcow2's incompatible feature bits.
_QCOW2_DIRTY, _QCOW2_CORRUPT, _QCOW2_COMPRESSION, _QCOW2_EXTENDED_L2 = 1 << 0, 1 << 1, 1 << 3, 1 << 4
_REASONS = {
    "backing_file": "it has a backing file",
    "data_file": "it keeps its data in an external file",
    "unknown_features": "it uses unsupported features",
    "descriptor": "its descriptor names other files",
    "footer": "its footer contradicts its header",
}


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image's format: ``format`` as qemu-img names it, ``virtual_size`` in bytes (None for raw: the file's length).

    ``compression``: what the image is packed in, as ``wrappers`` names it, such as ``gz`` or ``tar.gz``, or None; if
    set, the other fields describe the image inside.
    """

    format: str
    virtual_size: int | None
    compression: str | None = None


class Inspection:
    """The inspection of one uncompressed image, fed from its first byte until it is decided. CPU only: use a thread."""

    def __init__(self) -> None:
        from oslo_utils.imageutils.format_inspector import InspectWrapper  # 0.1 s to load

        self._buffer = io.BytesIO()
        self._wrapper: InspectWrapper = InspectWrapper(self._buffer)
        self._fed = 0

    def feed(self, data: bytes | memoryview, *, last: bool) -> ImageInfo | None:
        """Add the next bytes (``last``: no more will come) and return the result, or None if it is still open.

        Raises UnsafeImageError.
        """
        self._fed += len(data)
        try:
            for start in range(0, len(data), _STEP):
                self._inspect_chunk(bytes(data[start : start + _STEP]))
            if last or self._fed >= WINDOW:
                self._wrapper.close()
            found = self._wrapper.formats
        except Exception as error:  # a hostile header can make an inspector raise anything
            raise UnsafeImageError("the image's header is malformed") from error
        return _verdict(found) if found is not None else None

    def _inspect_chunk(self, chunk: bytes) -> None:
        self._buffer.seek(0)
        self._buffer.truncate()
        self._buffer.write(chunk)
        self._buffer.seek(0)
        self._wrapper.read(len(chunk))


def _verdict(found: list[FileInspector]) -> ImageInfo:
    names = {str(inspector) for inspector in found}
    if names <= _RAW:
        return ImageInfo("raw", None)
    if len(names) > 1:
        raise UnsafeImageError(f"the image's format is ambiguous: it can be read as {' and as '.join(sorted(names))}")
    inspector = found[0]
    if str(inspector) == "luks":
        raise UnsafeImageError("the image is encrypted with LUKS; provide it unencrypted")
    _check_safety(inspector)
    if str(inspector) == "qcow2":
        _check_qcow2(bytes(inspector.region("header").data))
    if str(inspector) == "vmdk":
        _check_vmdk(bytes(inspector.region("descriptor").data))
    try:
        virtual_size = int(inspector.virtual_size)
    except Exception as error:  # a hostile header can make the inspector raise anything
        raise UnsafeImageError(f"the {inspector} image's header is malformed") from error
    return ImageInfo("vpc" if str(inspector) == "vhd" else str(inspector), virtual_size)


def _unsupported_qcow2(header: bytes) -> UnsafeImageError:
    """Return the error for an image that needs features which are not read; with the command that removes them."""
    version, features = int.from_bytes(header[4:8]), int.from_bytes(header[72:80])
    if version == 1:
        return UnsafeImageError(
            "the image is qcow version 1, which is not read; convert it: qemu-img convert -f qcow -O qcow2 OLD NEW"
        )
    if version == 3 and features & ~(_QCOW2_DIRTY | _QCOW2_CORRUPT | _QCOW2_COMPRESSION) == _QCOW2_EXTENDED_L2:
        return UnsafeImageError(
            "the qcow2 image has extended L2 entries, which are not read; "
            "convert it: qemu-img convert -f qcow2 -O qcow2 OLD NEW"
        )
    return UnsafeImageError("the qcow2 image is unsafe: it uses unsupported features")


def _check_qcow2(header: bytes) -> None:
    """Reject images that the inspector accepts but whose disk cannot be read correctly."""
    version, encryption = int.from_bytes(header[4:8]), int.from_bytes(header[32:36])
    features = int.from_bytes(header[72:80]) if version >= 3 else 0
    if encryption:
        raise UnsafeImageError("the qcow2 image is encrypted; provide it unencrypted")
    if features & _QCOW2_DIRTY:
        raise UnsafeImageError(
            "the qcow2 image was not closed by its last writer; repair it with qemu-img check -r all"
        )
    if features & _QCOW2_CORRUPT:
        raise UnsafeImageError("the qcow2 image is marked as corrupt; repair it with qemu-img check -r")


def _check_vmdk(descriptor: bytes) -> None:
    """Reject what the inspector misses: it checks extents only; QEMU follows a parent and reads unterminated text."""
    text, end, _ = descriptor.lower().partition(b"\0")
    parents = {line.split(b"=")[-1].strip() for line in text.splitlines() if line.strip().startswith(b"parentcid")}
    if not end or b"parentfilenamehint" in text or not parents <= {b"ffffffff"}:
        raise UnsafeImageError("the vmdk image is unsafe: it has a parent, or its descriptor is not terminated")


def _check_safety(inspector: FileInspector) -> None:
    from oslo_utils.imageutils.format_inspector import SafetyCheckFailed

    try:
        inspector.safety_check()
    except SafetyCheckFailed as error:
        if set(error.failures) == {"unknown_features"} and str(inspector) == "qcow2":
            raise _unsupported_qcow2(bytes(inspector.region("header").data)) from error
        reasons = "; ".join(_REASONS.get(name, f"{name}: {why}") for name, why in error.failures.items())
        raise UnsafeImageError(f"the {inspector} image is unsafe: {reasons}") from error
    except Exception as error:  # incomplete; a hostile header can make the inspector raise anything
        raise UnsafeImageError(f"the {inspector} image's header is malformed: {error}") from error


if TYPE_CHECKING:
    from collections.abc import Callable

# Compressed bytes to look at before the decision is made with whatever they decompress to.
_COMPRESSED_WINDOW = 8 * MIB


class FileInspection:
    """The inspection of one file, compressed, archived or neither, fed from its first byte until it is decided.

    ``check`` is called between bounded pieces of work and may raise to stop.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self._plain: Inspection | None = None
        self._compression: str | None = None
        self._held = bytearray()
        self._look_at = HEAD

    def feed(self, data: bytes | memoryview, *, last: bool) -> ImageInfo | None:
        """Add the next bytes (``last``: no more will come) and return the result, or None if it is still open.

        Raises UnsafeImageError if it is not a disk image or an unsafe one; CorruptImageError if a compressed file
        cannot be decompressed.
        """
        if self._plain is not None:
            return self._plain.feed(data, last=last)
        self._held += data
        if len(self._held) < self._look_at and not last:
            return None
        if self._compression is None:
            self._compression = wrapper_of(self._held)
        if self._compression is None:
            _reject(not_a_disk(bytes(self._held[:HEAD])), "")
            self._plain, held, self._held = Inspection(), self._held, bytearray()
            return self._plain.feed(bytes(held), last=last)
        return self._look_inside(self._compression, last=last or len(self._held) >= _COMPRESSED_WINDOW)

    def _look_inside(self, compression: str, *, last: bool) -> ImageInfo | None:
        # Decompress from the start again whenever the input has doubled: few repetitions, of a bounded beginning.
        self._look_at = min(_COMPRESSED_WINDOW, 2 * len(self._held))
        content = beginning_of(compression, bytes(self._held), WINDOW, self._check)
        if len(content) < HEAD and not last:
            return None
        inner = wrapper_of(content)
        if inner is not None:
            self._compression = nested(compression, inner)
            return self._look_inside(self._compression, last=last)
        _reject(not_a_disk(content[:HEAD]), inside(compression))
        if not content and not ARCHIVES.isdisjoint(names(compression)):
            raise UnsafeImageError(
                f"there is no disk image{inside(compression)} within its first {_COMPRESSED_WINDOW // MIB} MiB"
            )
        info = Inspection().feed(content, last=last)
        return None if info is None else replace(info, compression=compression)


def _reject(what: str | None, where: str) -> None:
    """Raise UnsafeImageError if ``what`` is not None."""
    if what is None:
        return
    if what in {HTML, TEXT}:
        advice = "check that the url points to the image itself"
    else:
        advice = "extract the disk image and provide that, as it is or with gzip, bzip2, xz, zstd, lz4, tar or zip"
    raise UnsafeImageError(f"this is {what}{where}, not a disk image; {advice}")
