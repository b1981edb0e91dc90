"""The names of checksum files: a table of what publishers call them, in the order of preference. Pure.

A pattern is the url of a checksum file: ``{dir}`` is the image's folder, ``{parent}`` the folder above it, ``{name}``
the image's file name. A pattern with ``{name}`` is a sidecar, of this image only; the others list several files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from provisioner.contracts import ImageUrl
from provisioner.contracts.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class ChecksumFile:
    """A place to look at. ``algorithm`` is that of digests without a label; None: their length decides."""

    url: ImageUrl
    algorithm: str | None
    is_sidecar: bool

    @property
    def name(self) -> str:
        """Return its file name, for messages."""
        return self.url.file_name


# Sidecars come first: they cannot be about another image. Among them and among the lists, SHA-256 comes first, because
# the cache is keyed by it, and the common names come before the rare ones.
PATTERNS: tuple[str, ...] = (
    "{dir}/{name}.sha256",  # openSUSE, Gentoo, GitHub releases, MinIO uploads
    "{dir}/{name}.sha512",  # Alpine
    "{dir}/{name}.sha256sum",  # files made by `sha256sum FILE > FILE.sha256sum`
    "{dir}/{name}.SHA256SUM",  # CentOS Stream
    "{dir}/{name}.SHA256",  # Arch Linux
    "{dir}/{name}.CHECKSUM",  # Rocky Linux
    "{dir}/{name}-CHECKSUM",  # Fedora's spins and archives
    "{dir}/{name}.DIGESTS",  # Flatcar, Gentoo
    "{dir}/{name}.sha512sum",
    "{dir}/SHA256SUMS",  # Ubuntu, Amazon Linux
    "{dir}/SHA512SUMS",  # Debian
    "{dir}/CHECKSUM",  # AlmaLinux, CentOS Stream, Rocky Linux
    "{dir}/CHECKSUM.SHA256",  # FreeBSD
    "{dir}/CHECKSUM.SHA512",  # FreeBSD
    "{dir}/sha256sum.txt",  # CentOS 7, the mirror of RHCOS
    "{dir}/sha256sums",  # OpenWrt
)
# Asked only if nothing else was found, so that the error can name them: they are never enough.
WEAK_PATTERNS: tuple[str, ...] = ("{dir}/{name}.md5", "{dir}/{name}.sha1", "{dir}/MD5SUMS", "{dir}/SHA1SUMS")
# Fedora names the file by the release, without the image's flavour, in two generations of names:
# Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2 and Fedora-Cloud-Base-Generic.x86_64-40-1.14.qcow2.
_FEDORA = (
    re.compile(
        r"Fedora-(?P<product>[A-Za-z]+)-.*?-(?P<release>[\w.]+-[\w.]+)\.(?P<arch>x86_64|aarch64|ppc64le|s390x)\."
    ),
    re.compile(
        r"Fedora-(?P<product>[A-Za-z]+)-.*?\.(?P<arch>x86_64|aarch64|ppc64le|s390x)-(?P<release>[\w.]+-[\w.]+)\."
    ),
)


def checksum_files(image_url: ImageUrl, configured: Sequence[str] = ()) -> list[ChecksumFile]:
    """Return where to look for the image's checksum, best first: the source's own patterns, then the table."""
    return list(_files(image_url, [*configured, *_fedora(image_url.file_name), *PATTERNS]))


def files_of_patterns(image_url: ImageUrl, patterns: Sequence[str]) -> list[ChecksumFile]:
    """Return the files of these patterns, or urls, for the image."""
    return list(_files(image_url, patterns))


def weak_checksum_files(image_url: ImageUrl) -> list[ChecksumFile]:
    """Return where publishers put digests that are too weak."""
    return list(_files(image_url, WEAK_PATTERNS))


def shared_query(query: str) -> str:
    """Return the query with which files beside the image can be read too; empty if it is for the image alone.

    It is kept only if it says so itself: an Azure SAS of a container, a directory or an account. Other queries sign one
    path (S3, Google Cloud, an Azure SAS of a blob), name one version, or mean something unknown.
    """
    fields = dict(parse_qsl(query))
    shared = fields.get("sr") in {"c", "d"} or "o" in fields.get("srt", "")
    return query if shared and "sv" in fields and "sig" in fields else ""


def is_signed_alone(query: str) -> bool:
    """Whether the query is a signature that gives access to the image but to no file beside it."""
    names = {name.lower() for name, _ in parse_qsl(query)}
    signed = {"x-amz-signature", "x-goog-signature", "signature", "sig"} & names
    return bool(signed) and not shared_query(query)


def _fedora(file_name: str) -> Iterator[str]:
    for form in _FEDORA:
        if match := form.match(file_name):
            yield f"{{dir}}/Fedora-{match['product']}-{match['release']}-{match['arch']}-CHECKSUM"
            return


def _files(image_url: ImageUrl, patterns: Sequence[str]) -> Iterator[ChecksumFile]:
    seen = set()
    for pattern in patterns:
        folder, _, name = image_url.path.rpartition("/")
        if not name and "{name}" in pattern:
            continue
        fields = {"dir": folder, "parent": folder.rpartition("/")[0], "name": name}
        path = re.sub(r"\{(dir|parent|name)\}", lambda match: fields[match[1]], pattern)  # noqa: B023
        try:
            if "://" in pattern:
                url = ImageUrl.parse(pattern)
            else:
                url = image_url.with_path(path, shared_query(image_url.query))
        except InvalidRequestError:
            continue
        if url not in seen:
            seen.add(url)
            yield ChecksumFile(url, _algorithm(pattern), "{name}" in pattern)


def _algorithm(pattern: str) -> str | None:
    last = pattern.rpartition("/")[2].lower()
    return next((algorithm for algorithm in ("sha256", "sha512") if algorithm in last), None)
