"""The source ``oci``: finds an image's layer by its manifest and fetches it by digest. ``HttpTransport`` transfers."""

from __future__ import annotations

import hashlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from lvp_source_oci.authorization import Authorization
from lvp_source_oci.errors import ChallengeError, meaning
from lvp_source_oci.manifest import ACCEPT, MAX_MANIFEST, decoded, disk_layer, for_architecture, host_architecture
from lvp_source_oci.reading import read_document
from lvp_source_oci.reference import SCHEMES, api_host, canonical, parse, pinned_url, repository_of
from provisioner.contracts import BackEndContext, Checksum, HttpTransport, ImageSource, ImageUrl, RemoteImage, UrlPrefix
from provisioner.contracts.errors import (
    InvalidRequestError,
    RemoteChangedError,
    RemoteNotFoundError,
    SourceError,
    UrlNotAllowedError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from lvp_source_oci.manifest import Descriptor, Manifest
    from lvp_source_oci.reference import Reference
    from lvp_source_oci.settings import OciSettings
    from provisioner.contracts import ImageStream
    from provisioner.contracts.errors import ProvisionerError

log = structlog.get_logger(__name__)


class OciSource(ImageSource):
    """Fetches the one layer of an image or artifact; the layer's digest is the image's version and checksum.

    A tag is looked up once, by ``stat``, which also returns the url with the manifest's digest. The download uses that,
    so a tag that moves meanwhile changes nothing.
    """

    by_digest = True

    def __init__(self, settings: OciSettings, context: BackEndContext) -> None:
        self._settings = settings
        self._name = context.name
        self.parallel_ranges = settings.ranges_of_an_image
        # Compared as URLs, so that the scheme's default port may be written or not.
        prefixes = [UrlPrefix.parse(f"{settings.scheme}://{text}") for text in settings.registries]
        self._own = [replace(prefix, host=canonical(prefix.host)) for prefix in prefixes]
        hosts = [replace(prefix, host=api_host(prefix.host), path="") for prefix in self._own]
        self._allowed = [*hosts, *(UrlPrefix.parse(text) for text in settings.redirect_urls)]
        self._authorization = Authorization(settings, context.name)
        # Content-Encoding is only stored metadata here: what arrives is judged by its digest.
        options = settings.options(any_encoding=True)
        self._transport = HttpTransport(options, self._allows, self._prepare, self._explain)

    def owns(self, url: ImageUrl) -> bool:
        if url.scheme not in SCHEMES:
            return False
        try:
            name = ImageUrl.parse(f"{self._settings.scheme}://{canonical(url.netloc)}/{repository_of(url)}")
        except InvalidRequestError:
            return False
        return any(prefix.covers(name) for prefix in self._own)

    def prefixes(self) -> Sequence[str]:
        return [f"oci://{text}" if "/" in text else f"oci://{text}/" for text in self._settings.registries]

    async def stat(self, url: ImageUrl) -> RemoteImage:
        reference = self._reference(url)
        layer, manifest = await self._layer(reference)
        pinned = None if ":" in reference.manifest else pinned_url(url, manifest)
        return RemoteImage(url, layer.size, layer.digest, accepts_ranges=True, digest=layer.checksum, pinned=pinned)

    @asynccontextmanager
    async def open(
        self, url: ImageUrl, start: int = 0, stop: int | None = None, version: str | None = None
    ) -> AsyncIterator[ImageStream]:
        reference = self._reference(url)
        digest = await self._digest(reference, version)
        async with AsyncExitStack() as stack:
            try:
                blob = self._open(reference, reference.blob_url(self._settings.scheme, digest), start, stop)
                stream = await stack.enter_async_context(blob)
            except RemoteNotFoundError as error:
                if version is None:
                    raise
                raise RemoteChangedError(f"{reference}: the registry no longer has the layer {digest}") from error
            yield stream

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def _digest(self, reference: Reference, version: str | None) -> str:
        """Return the digest of the layer to fetch."""
        if version is None:
            return (await self._layer(reference))[0].digest
        try:
            return str(Checksum.parse(version))
        except InvalidRequestError as error:
            raise RemoteChangedError(f"{reference}: the registry has no layer {version!r}") from error

    async def _layer(self, reference: Reference) -> tuple[Descriptor, str]:
        """Return the layer with the disk image, and the digest of the manifest or index that the reference names.

        That takes one request, or two if it is an index.
        """
        name = str(reference)
        manifest, digest = await self._manifest(reference, reference.manifest)
        if manifest.manifests is not None:
            architecture = self._settings.architecture or host_architecture()
            entry = for_architecture(manifest.manifests, architecture, name)
            manifest, _ = await self._manifest(reference, str(entry.checksum))
            if manifest.manifests is not None:
                raise SourceError(f"{name} is an index of indexes, which is not supported; give the digest of an image")
        layer = disk_layer(manifest, name)
        log.info("found the image's layer", image=name, layer=str(layer.checksum), title=layer.label)
        return layer, digest

    async def _manifest(self, reference: Reference, manifest: str) -> tuple[Manifest, str]:
        """Return a manifest and its digest."""
        async with self._open(reference, reference.manifest_url(self._settings.scheme, manifest)) as stream:
            body = await read_document(stream, MAX_MANIFEST)
        known = manifest if ":" in manifest else None
        return decoded(body, str(reference), known), known or f"sha256:{hashlib.sha256(body).hexdigest()}"

    @asynccontextmanager
    async def _open(
        self, reference: Reference, url: str, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[ImageStream]:
        """Open a document or blob; if the registry wants authorization, or a new one, get it and ask again."""
        async with AsyncExitStack() as stack:
            try:
                stream = await stack.enter_async_context(self._transport.open(url, start, stop))
            except ChallengeError as error:
                await self._authorization.answer(error, reference)
                stream = await stack.enter_async_context(self._transport.open(url, start, stop))
            yield stream

    def _reference(self, url: ImageUrl) -> Reference:
        if not self.owns(url):
            raise UrlNotAllowedError(f"source {self._name} does not serve this image URL")
        return parse(url)

    def _allows(self, url: ImageUrl) -> bool:
        return any(prefix.covers(url) for prefix in self._allowed)

    def _prepare(self, _method: str, url: ImageUrl, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Ask for the known kinds of manifest, and add the repository's authorization."""
        repository, _, kind = url.path.removeprefix("/v2/").rpartition("/")[0].rpartition("/")
        accept = {"Accept": ACCEPT} if kind == "manifests" else {}
        header = self._authorization.header(url.netloc, repository)
        return {**headers, **accept, **({} if header is None else {"Authorization": header})}

    def _explain(self, status: int, headers: Mapping[str, str], body: bytes, where: str) -> ProvisionerError | None:
        return meaning(status, headers, body, where, self._name)
