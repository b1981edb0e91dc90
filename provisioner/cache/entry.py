"""The values of the cache: entries and expectations, file names, and which entries to evict. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from provisioner.contracts import Checksum, RemoteImage, Signer
from provisioner.download.vhd_footer import disk_bytes
from provisioner.signatures import Proof

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from provisioner.contracts import ImageUrl
    from provisioner.download.inspection import ImageInfo

# Of formats, archives and compressions: what the name of a cached file replaces by what the image really is.
_EXTENSIONS = re.compile(
    r"(\.(qcow2|img|raw|qcow|vmdk|vhdx?|vdi|iso))?(\.(tar|ova|zip))?(\.(gz|xz|zst|bz2|lz4|lzma|tgz|txz))?$"
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One published image. Sizes in bytes, times in seconds since the epoch; ``mtime_ns`` detects a modified file.

    ``signed_by`` is who signed it, ``signed_under`` the ``Key.id`` that this was verified with; None if no signature
    was demanded yet.
    """

    sha256: str
    sha512: str | None
    file_name: str
    size: int
    mtime_ns: int
    format: str
    virtual_size: int | None  # None: a compressed raw image; its size is unknown until it is decompressed
    url: str
    added_at: float
    last_used_at: float
    pinned: bool = False
    compression: str | None = None
    signed_by: Signer | None = None
    signed_under: str | None = None

    @property
    def digest(self) -> str:
        """Return the digest in the API's form."""
        return f"sha256:{self.sha256}"


def new_entry(
    name: str,
    url: str,
    digests: Mapping[str, str],
    info: ImageInfo,
    status: os.stat_result,
    now: float,
    end: bytes,
    *,
    pinned: bool = False,
) -> Entry:
    """Return the entry for the file ``name``, given its hex ``digests`` by algorithm and its inspection.

    ``end``: the file's last bytes, where a fixed VHD has its footer.
    """
    is_raw = info.virtual_size is None and not info.compression
    return Entry(
        sha256=digests["sha256"],
        sha512=digests.get("sha512"),
        file_name=name,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        format=info.format,
        virtual_size=disk_bytes(end, status.st_size) if is_raw else info.virtual_size,
        compression=info.compression,
        url=url,
        added_at=now,
        last_used_at=now,
        pinned=pinned,
    )


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about an image before it is in the cache.

    ``may_use``: a cached image with the same checksum is used only if this is True for one of its urls; None: always.
    """

    remote: RemoteImage
    checksum: Checksum | None
    may_use: Callable[[str], bool] | None = None
    proof: Proof | None = None  # the signature that the image must have
    one_connection: bool = False  # no parallel ranges: an earlier download was put together from different images
    origin: str = ""  # who expects the checksum, for messages: such as the url of its file

    @property
    def download_key(self) -> str:
        """Return the key by which requests share a download."""
        # Includes the url: a request must not depend on the server of another one, even for the same checksum.
        signature = f" {self.proof.key.id}" if self.proof is not None else ""
        return f"{self.remote.url.text} {self.version} {self.checksum}{signature}"

    @property
    def version(self) -> str | None:
        """Return the version that all parts of the download must have; None if the digest alone decides.

        Mirrors and load balancers serve the same bytes with other ETags and dates.
        """
        return self.remote.version if self.checksum is None else None

    @property
    def may_resume(self) -> bool:
        """Whether a broken download may go on where it ended: its parts are of one version, or a digest decides."""
        return self.remote.accepts_ranges and (self.checksum is not None or self.remote.version is not None)


def file_name(url: ImageUrl, sha256: str, image_format: str, compression: str | None = None) -> str:
    """Return a readable file name; the digest makes it unique."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", url.file_name)
    stem = _EXTENSIONS.sub("", stem).strip("._-")[:80] or "image"
    return f"{stem}-{sha256[:12]}.{image_format}" + (f".{compression}" if compression else "")
