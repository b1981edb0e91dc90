"""Finds the disk image in manifests: the index's entry for an architecture, the manifest's one layer. Pure.

A manifest may be Docker's or OCI's; their fields are the same. The layer is an artifact's file (as ``oras push`` makes
it) or a containerDisk's tar archive with the disk in it. Which of them it is, and how it is compressed, is detected
from its bytes: ``oras push`` labels every file as a tar archive unless told otherwise.
"""

from __future__ import annotations

import hashlib
import platform
import re
from typing import TYPE_CHECKING

import msgspec

from lvp_source_oci.reference import DIGEST
from provisioner.contracts import Checksum
from provisioner.contracts.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence

# The specification asks registries to accept this much; more is rejected here.
MAX_MANIFEST = 4 * 1024 * 1024
ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_TITLE = "org.opencontainers.image.title"
# The machine's name in the kernel -> in OCI's indexes, which use those of Go.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
# Layers that are no disk, whatever they contain: signatures and attestations, Helm charts, encrypted layers.
_NO_DISK = re.compile(r"^text/|[/+]json$|\+encrypted$|helm\.chart|^application/wasm$")


class Platform(msgspec.Struct, frozen=True):
    """What an index's entry runs on."""

    os: str = ""
    architecture: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A reference to a manifest or a blob."""

    digest: str
    size: int
    media_type: str = ""
    annotations: dict[str, str] | None = None
    platform: Platform | None = None

    @property
    def checksum(self) -> Checksum:
        """Its digest. Raises SourceError if it is malformed."""
        if not re.fullmatch(DIGEST, self.digest):
            raise SourceError("the manifest contains a digest that is neither sha256 nor sha512")
        return Checksum.parse(self.digest)

    @property
    def label(self) -> str:
        """Its title, else its media type, as far as they can be shown."""
        text = (self.annotations or {}).get(_TITLE) or self.media_type or "without a type"
        return re.sub(r"[^\w.+/-]", "?", text, flags=re.ASCII)[:80]


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """An image manifest (``layers``) or an index (``manifests``)."""

    schema_version: int
    media_type: str = ""
    layers: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None


_DECODER = msgspec.json.Decoder(Manifest)


def host_architecture() -> str:
    """Return this host's architecture as OCI names it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def decoded(body: bytes, name: str, digest: str | None) -> Manifest:
    """Return the manifest in ``body``, which must have ``digest`` unless that is None. Raises SourceError."""
    if digest is not None:
        algorithm = digest.partition(":")[0]
        if f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}" != digest:
            raise SourceError(f"{name}: the registry sent another manifest than the one with this digest")
    try:
        manifest = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{name}: the registry sent something that is no manifest") from error
    if manifest.schema_version != 2:
        raise SourceError(f"{name} has a manifest of schema {manifest.schema_version}; push it again with a newer tool")
    # Two programs could read two images from it (CVE-2021-41190).
    if (manifest.layers is None) == (manifest.manifests is None):
        raise SourceError(f"{name}: the manifest must have either layers or manifests")
    return manifest


def for_architecture(entries: Sequence[Descriptor], architecture: str, name: str) -> Descriptor:
    """Return the index's entry for Linux on ``architecture``, or the only entry if it names no platform."""
    for entry in entries:
        if entry.platform is not None and (entry.platform.os, entry.platform.architecture) == ("linux", architecture):
            return entry
    if len(entries) == 1 and entries[0].platform is None:
        return entries[0]
    offers = {f"{one.platform.os}/{one.platform.architecture}" for one in entries if one.platform is not None}
    known = ", ".join(sorted(re.sub(r"[^\w/-]", "?", offer, flags=re.ASCII)[:40] for offer in offers)[:20])
    raise SourceError(
        f"{name} has no image for linux/{architecture}, only for {known or 'unnamed platforms'}; "
        "set architecture in the source's table to choose another"
    )


def disk_layer(manifest: Manifest, name: str) -> Descriptor:
    """Return the one layer of an image manifest. Raises SourceError if it cannot be a disk."""
    layers = manifest.layers or []
    if not layers:
        raise SourceError(f"{name} has no layer, and so no disk image")
    if len(layers) > 1:
        shown = ", ".join(layer.label for layer in layers[:5])
        raise SourceError(
            f"{name} has {len(layers)} layers ({shown}); an artifact or containerDisk with a disk has exactly one"
        )
    layer = layers[0]
    if _NO_DISK.search(layer.media_type):
        raise SourceError(f"{name} has the media type {layer.label}, which is no disk image")
    if layer.size <= 0:
        raise SourceError(f"{name}: the layer is empty")
    return layer
