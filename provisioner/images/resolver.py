"""Resolves the name of an image to the url and the checksum of the newest one, asking its publisher if necessary."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.config import beside
from provisioner.contracts import Checksum, ImageUrl
from provisioner.contracts.errors import (
    ImageError,
    InvalidRequestError,
    NotFoundError,
    ProvisionerError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SourceError,
)
from provisioner.contracts.source import closing_chunks
from provisioner.contracts.urls import shown
from provisioner.download import checksum_lookup
from provisioner.images import indexes, url_pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from provisioner.config import NamedImage, SignatureSettings
    from provisioner.contracts import ImageSource

log = structlog.get_logger(__name__)

# Seconds that an answer is reused: many volumes of one image are often requested in a row.
_FRESH = 300.0
# Seconds for all questions about one image. A client waits for the answer.
_TIMEOUT = 20.0
# Ubuntu's index of releases has some 3 MiB.
_MAX_TEXT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """What a name stands for now. ``version`` is what was found for the placeholders, or in the index.

    ``signature`` is what the image must have instead of what its source demands.
    """

    name: str
    url: ImageUrl
    image_type: str
    checksum: Checksum | None = None
    version: str | None = None
    signature: SignatureSettings | None = None


class ImageResolver:
    """The named images of the configuration.

    ``source_for`` returns the source of a url; ``cached_urls`` the urls of the cached images.
    """

    def __init__(
        self,
        images: Mapping[str, NamedImage],
        source_for: Callable[[ImageUrl], ImageSource],
        cached_urls: Callable[[], Iterable[str]],
    ) -> None:
        self.images = images
        self._source_for = source_for
        self._cached_urls = cached_urls
        self._known: dict[str, tuple[float, ResolvedImage]] = {}
        # One request to the publisher at a time for each image.
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    def named(self, name: str) -> NamedImage:
        """Return the settings of an image. Raises NotFoundError."""
        image = self.images.get(name)
        if image is None:
            known = ", ".join(sorted(self.images)) or "none; add a catalog (--catalog, catalogs) or [images.NAME]"
            raise NotFoundError(f"there is no image named {name!r}; there are: {known}")
        return image

    async def resolve(self, name: str) -> ResolvedImage:
        """Return what ``name`` stands for.

        If the publisher does not answer, this is the last answer, or else the newest image in the cache that the url
        pattern covers. Raises NotFoundError for an unknown name; SourceError or ImageError if there is no answer.
        """
        image = self.named(name)
        if image.url is not None and not image.placeholders and image.checksum_url is None:
            checksum = Checksum.parse(image.checksum) if image.checksum else None
            return ResolvedImage(name, ImageUrl.parse(image.url), image.image_type, checksum, None, image.signature)
        async with self._locks[name]:
            asked_at, known_image = self._known.get(name, (0.0, None))
            if known_image is not None and trio.current_time() - asked_at < _FRESH:
                return known_image
            try:
                with trio.fail_after(_TIMEOUT):
                    found = await self._ask(name, image)
            except trio.TooSlowError as error:
                return self._fall_back(
                    name, image, known_image, RemoteUnavailableError(f"no answer within {_TIMEOUT:g} s"), error
                )
            except (SourceError, ImageError) as error:
                return self._fall_back(name, image, known_image, error, error)
            except InvalidRequestError as error:  # what the publisher's index contains
                unusable = ImageError(f"its publisher offers an unusable url or checksum: {error.message}")
                return self._fall_back(name, image, known_image, unusable, error)
            self._known[name] = trio.current_time(), found
            return found

    def _fall_back(
        self,
        name: str,
        image: NamedImage,
        known: ResolvedImage | None,
        error: ProvisionerError,
        cause: BaseException,
    ) -> ResolvedImage:
        found = known or self._newest_cached(name, image)
        if found is None:
            raise type(error)(f"the newest image {name!r} could not be determined: {error.message}") from cause
        log.warning("the newest image could not be determined; using an older answer", image=name, url=str(found.url))
        return found

    def cached(self, name: str) -> ResolvedImage | None:
        """Return the newest cached image that ``name`` is known to have stood for, without asking its publisher."""
        return self._newest_cached(name, self.named(name))

    def _newest_cached(self, name: str, image: NamedImage) -> ResolvedImage | None:
        if image.url is None or not image.placeholders:
            return None
        offers = [
            (url_pattern.order(values), url, values)
            for url in self._cached_urls()
            if (values := url_pattern.values_in(image.url, url, image.match)) is not None
        ]
        if not offers:
            return None
        _, url, values = max(offers, key=lambda offer: offer[0])
        return ResolvedImage(name, ImageUrl.parse(url), image.image_type, None, _version(values), image.signature)

    async def _ask(self, name: str, image: NamedImage) -> ResolvedImage:
        if image.url is not None:
            return await self._from_listing(name, image, image.url)
        if image.simplestreams is not None:
            found = indexes.in_simplestreams(await self._read(image.simplestreams.url), image.simplestreams)
        else:
            assert image.index is not None, "one of the three is set"
            found = indexes.in_json(await self._read(image.index.url), image.index)
        checksum = Checksum.parse(found.checksum) if found.checksum else None
        return ResolvedImage(
            name, ImageUrl.parse(found.url), image.image_type, checksum, found.version, image.signature
        )

    async def _from_listing(self, name: str, image: NamedImage, pattern: str) -> ResolvedImage:
        values: dict[str, str] = {}
        while (folder := url_pattern.folder(pattern)) is not None:
            listing = (await self._read(folder)).decode("utf-8", errors="replace")
            newest = url_pattern.newest(pattern, url_pattern.names_in_listing(listing, folder), image.match)
            if newest is None:
                missing = pattern.removeprefix(folder).partition("/")[0]
                raise RemoteNotFoundError(f"{shown(folder)} lists nothing that matches {missing}")
            values |= newest
            pattern = url_pattern.fill(pattern, newest)
        url = ImageUrl.parse(pattern)
        checksum, signature = None, image.signature
        if image.checksum_url:
            checksum_url = url_pattern.fill(image.checksum_url, values)
            checksum = await self._checksum(checksum_url, url)
            if signature is not None and not signature.files:
                signature = beside(checksum_url, signature)
        return ResolvedImage(name, url, image.image_type, checksum, _version(values) or None, signature)

    async def _checksum(self, checksum_url: str, url: ImageUrl) -> Checksum:
        """Return the digest that a checksum file says for the image. Raises ImageError if it has none."""
        text = (await self._read(checksum_url)).decode("utf-8", errors="replace")
        for algorithm in ("sha256", "sha512"):
            if found := checksum_lookup.parse(text, algorithm, url.file_name, only_file=False):
                return found
        raise ImageError(f"{shown(checksum_url)} has no SHA-256 or SHA-512 of {url.file_name}")

    async def _read(self, url: str) -> bytes:
        parsed, body = ImageUrl.parse(url), bytearray()
        async with self._source_for(parsed).open(parsed) as stream, closing_chunks(stream) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > _MAX_TEXT:
                    raise ImageError(f"{shown(url)} is too large for an index: more than {_MAX_TEXT // 2**20} MiB")
        return bytes(body)


def _version(values: Mapping[str, str]) -> str:
    return "-".join(values.values())
