"""A job's decisions, as pure functions of its spec and the known facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provisioner.contracts import GIB, MIB, Placement, UrlPrefix
from provisioner.contracts.errors import ChecksumMissingError, ImageFormatError, ImageTooLargeError, VolumeInUseError
from provisioner.download.checksum_names import is_signed_alone
from provisioner.download.vhd_footer import FOOTER, may_have_footer

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from provisioner.contracts import Converter, ImageUrl, VolumeUser
    from provisioner.download.checksum_lookup import Found
    from provisioner.download.inspection import ImageInfo


def data_bytes(image_format: str, file_size: int | None, virtual_size: int) -> int | None:
    """Return about how many bytes of a volume an image will fill, or None if unknown.

    A format with tables leaves its holes out of the file, so its length is an estimate (too low if compressed). A raw
    image's file contains its holes: by its length, a sparse image that fits would be refused.
    """
    return None if image_format == "raw" or file_size is None else min(file_size, virtual_size)


def smallest_size(virtual_size: int) -> int:
    """Return the size of the smallest volume of whole GiB that an image of that virtual size fits (both in bytes)."""
    return -(-virtual_size // GIB) * GIB


def check_fits(virtual_size: int, size_bytes: int) -> None:
    """Raise ImageTooLargeError if an image of that virtual size does not fit the volume (both in bytes)."""
    if virtual_size > size_bytes:
        raise ImageTooLargeError(
            f"the image needs {virtual_size} bytes, but the volume would have {size_bytes}; "
            f"ask for {smallest_size(virtual_size) // GIB} GiB or more"
        )


def decompressed_limit(image_format: str, size_bytes: int) -> int:
    """Return the maximum decompressed size of an image: the volume's size, plus room for the format's tables.

    A raw image may have the footer of a fixed VHD.
    """
    return size_bytes + FOOTER if image_format == "raw" else size_bytes * 9 // 8 + 64 * MIB


def needs_end(info: ImageInfo, declared: str, image_url: ImageUrl, file_size: int | None) -> bool:
    """Return whether the image's end decides its virtual size: it may be a fixed VHD, which begins like a raw disk."""
    return info.format == "raw" and (declared == "vpc" or may_have_footer(image_url.file_name, file_size))


def check_image(info: ImageInfo, declared: str, file_size: int | None, size_bytes: int) -> int | None:
    """Return the image's virtual size in bytes (None: not known yet), checked against the spec.

    ``size_bytes`` is the volume's size, 0 if the image decides it. Raises ImageFormatError if the image is not of the
    declared format, ImageTooLargeError if it does not fit.
    """
    if info.format != declared:
        # Anything unknown is raw, so that is no advice.
        advice = "" if info.format == "raw" else f"; submit it with image_type {info.format}"
        raise ImageFormatError(f"the image was declared as {declared} but is {info.format}{advice}")
    virtual_size = info.virtual_size if info.virtual_size is not None else file_size
    if virtual_size == 0:
        raise ImageFormatError("the image is empty")
    if virtual_size is not None and size_bytes:
        check_fits(virtual_size, size_bytes)
    return virtual_size


def may_overlap(converter: Converter, placement: Placement, *, hit: bool, size_known: bool) -> bool:
    """Return whether the conversion may start before the image is verified.

    Never in place: the old content must stay until the digest matched.
    """
    return not hit and converter.streams and placement is not Placement.IN_PLACE and size_known


def check_checksum(found: Found, image_url: ImageUrl, *, required: bool) -> None:
    """Raise ChecksumMissingError if the image has no checksum and the configuration requires one."""
    if found.checksum is None and required:
        signed = " (its url is signed for itself alone: files beside it were asked for without the signature)"
        raise ChecksumMissingError(
            f"no checksum is known for {image_url}{signed if is_signed_alone(image_url.query) else ''} "
            f"({found.reasons()}); give its sha256 or sha512 with the request, "
            "name the publisher's checksum file in checksum_files of the source, "
            "or set require_checksum = false in [cache]"
        )


def unverified_warning(found: Found, image_url: ImageUrl) -> str | None:
    """Return what to tell the client of an image without a checksum although there are checksum files; None if fine.

    A file that exists but says nothing about the image may have been truncated, or be a page of another service.
    """
    if found.checksum is not None or not found.useless:
        return None
    return f"{image_url} was not verified, because no checksum file could be used: {found.useless_files()}"


def covers(allowed: Collection[str], image_url: ImageUrl, source: str | None) -> bool:
    """Return whether a caller limited to ``allowed``, names of sources and prefixes of urls, may use the image.

    ``source`` is the name of the source that owns the url, None if none does.
    """
    if source in allowed:
        return True
    return any(UrlPrefix.parse(prefix).covers(image_url) for prefix in allowed if "://" in prefix)


def check_users(volume_name: str, users: Sequence[VolumeUser]) -> None:
    """Raise VolumeInUseError if the volume has users."""
    if users:
        raise VolumeInUseError(f"the volume {volume_name} is in use by {', '.join(str(user) for user in users)}")
