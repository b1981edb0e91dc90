"""Parses ``oci://REGISTRY/REPOSITORY[:TAG][@DIGEST]`` and maps it to the registry's API. Pure.

The grammar is that of the OCI distribution specification. ``docker://`` means the same. Docker Hub is ``docker.io``;
its API has another host, and its official repositories are below ``library/``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from provisioner.contracts.errors import SourceError

if TYPE_CHECKING:
    from provisioner.contracts import ImageUrl

SCHEMES = frozenset({"oci", "docker"})
DIGEST = r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
# The specification's recommendation for the repository with its host.
_MAX_LENGTH = 255
DOCKER_HUB, _DOCKER_HUB_API = "docker.io", "registry-1.docker.io"
_DOCKER_HUB_NAMES = {DOCKER_HUB, "index.docker.io", _DOCKER_HUB_API}


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry. ``registry`` is its host, with a port if one is given; ``manifest`` a tag or digest."""

    registry: str
    repository: str
    manifest: str

    def __str__(self) -> str:
        mark = "@" if ":" in self.manifest else ":"
        return f"{self.registry}/{self.repository}{mark}{self.manifest}"

    def manifest_url(self, scheme: str, manifest: str) -> str:
        """Return the URL of a manifest in the same repository."""
        return f"{scheme}://{api_host(self.registry)}/v2/{self.repository}/manifests/{manifest}"

    def blob_url(self, scheme: str, digest: str) -> str:
        """Return the URL of a blob in the same repository."""
        return f"{scheme}://{api_host(self.registry)}/v2/{self.repository}/blobs/{digest}"


def canonical(registry: str) -> str:
    """Return the one name of a registry; Docker Hub has three."""
    return DOCKER_HUB if registry in _DOCKER_HUB_NAMES else registry


def api_host(registry: str) -> str:
    """Return the host of a registry's API, with the port if there is one."""
    return _DOCKER_HUB_API if registry == DOCKER_HUB else registry


def repository_of(url: ImageUrl) -> str:
    """Return the repository that ``url`` names, valid or not."""
    name = url.path[1:].partition("@")[0]
    folder, slash, last = name.rpartition("/")
    repository = folder + slash + last.partition(":")[0]
    return f"library/{repository}" if canonical(url.netloc) == DOCKER_HUB and "/" not in repository else repository


def pinned_url(url: ImageUrl, digest: str) -> ImageUrl:
    """Return ``url`` with the digest of its manifest instead of the tag."""
    folder, slash, last = url.path.rpartition("/")
    return url.with_path(f"{folder}{slash}{last.partition(':')[0]}@{digest}")


def parse(url: ImageUrl) -> Reference:
    """Return the reference that ``url`` contains. Without tag and digest it is the tag ``latest``.

    Raises SourceError. If there are both, the digest counts.
    """
    repository = repository_of(url)
    name, at, digest = url.path[1:].partition("@")
    _, colon, tag = name.rpartition("/")[2].partition(":")
    if url.query or len(repository) > _MAX_LENGTH or not _REPOSITORY.fullmatch(repository):
        raise SourceError(f"{url} is invalid: a repository has only lower-case letters, digits and '.', '_', '-', '/'")
    if colon and not _TAG.fullmatch(tag):
        raise SourceError(f"{url} is invalid: a tag has up to 128 letters, digits and '.', '_', '-'")
    if at and not re.fullmatch(DIGEST, digest):
        raise SourceError(f"{url} is invalid: a digest is sha256: or sha512: with its hexadecimal digits")
    return Reference(canonical(url.netloc), repository, digest or tag or "latest")
