"""The source ``http``: the URLs it serves, its credentials and its mirrors. The transport does the transfer."""

from __future__ import annotations

import base64
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from provisioner.contracts import (
    BackEndContext,
    HttpTransport,
    ImageSource,
    RemoteImage,
    UrlPrefix,
    read_secret,
)
from provisioner.contracts.errors import SourceError, UrlNotAllowedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from lvp_source_http.settings import HttpSettings
    from provisioner.contracts import ImageStream, ImageUrl


class HttpSource(ImageSource):
    """Fetches images under the configured URL prefixes."""

    def __init__(self, settings: HttpSettings, context: BackEndContext) -> None:
        self._settings = settings
        self._name = context.name
        self.parallel_ranges = settings.ranges_of_an_image
        self._own = [UrlPrefix.parse(text) for text in settings.urls]
        self._others = [UrlPrefix.parse(text) for text in settings.mirrors + settings.redirect_urls]
        # Credentials are read in a thread, which a request without any does not need.
        prepare = self._prepare if settings.headers or settings.bearer_token or settings.username else None
        self._transport = HttpTransport(settings.options(stat_with_get=True), self._allows, prepare)

    def owns(self, url: ImageUrl) -> bool:
        return _covered(url, self._own)

    def prefixes(self) -> Sequence[str]:
        return self._settings.urls

    def checksum_files(self) -> Sequence[str]:
        return self._settings.checksum_files

    async def stat(self, url: ImageUrl) -> RemoteImage:
        places = self._places(url)
        for place in places[:-1]:
            try:
                return replace(await self._transport.stat(place), url=url)
            except SourceError:
                continue  # try the next URL; only the error of the last one is raised
        return replace(await self._transport.stat(places[-1]), url=url)

    @asynccontextmanager
    async def open(
        self, url: ImageUrl, start: int = 0, stop: int | None = None, version: str | None = None
    ) -> AsyncIterator[ImageStream]:
        places = self._places(url)
        async with AsyncExitStack() as stack:
            for place in places[:-1]:
                try:
                    stream = await stack.enter_async_context(self._transport.open(place, start, stop, version))
                    break
                except SourceError:
                    continue
            else:
                stream = await stack.enter_async_context(self._transport.open(places[-1], start, stop, version))
            yield stream

    async def aclose(self) -> None:
        await self._transport.aclose()

    def _places(self, url: ImageUrl) -> Sequence[ImageUrl | str]:
        """Return the URLs to try for ``url``, in order: the mirrors, then the URL itself."""
        if not self.owns(url):
            raise UrlNotAllowedError(f"source {self._name} does not serve this image URL")
        if not self._settings.mirrors:
            return [url]
        rest = url.path.removeprefix(self._own[0].path) + (f"?{url.query}" if url.query else "")
        return [*(mirror.rstrip("/") + rest for mirror in self._settings.mirrors), url]

    def _allows(self, url: ImageUrl) -> bool:
        return _covered(url, [*self._own, *self._others])

    def _prepare(self, _method: str, url: ImageUrl, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Add the credentials. Read them for every request so that renewed secrets take effect at once."""
        if not self.owns(url):
            return headers
        settings = self._settings
        extra = {name: read_secret(ref) for name, ref in settings.headers.items()}
        if settings.bearer_token is not None:
            extra["Authorization"] = f"Bearer {read_secret(settings.bearer_token)}"
        if settings.username is not None and settings.password is not None:
            login = f"{settings.username}:{read_secret(settings.password)}".encode()
            extra["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
        return {**headers, **extra}


def _covered(url: ImageUrl, prefixes: Sequence[UrlPrefix]) -> bool:
    return any(prefix.covers(url) for prefix in prefixes)
