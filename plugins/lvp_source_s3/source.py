"""The S3 and MinIO source: signs requests and explains errors."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from minio.signer import sign_v4_s3

from lvp_source_s3.addresses import Place, place_of
from lvp_source_s3.credentials import Keys
from lvp_source_s3.errors import meaning
from provisioner.contracts import BackEndContext, HttpTransport, ImageSource, RemoteImage
from provisioner.contracts.errors import UrlNotAllowedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from lvp_source_s3.settings import S3Settings
    from provisioner.contracts import ImageStream, ImageUrl
    from provisioner.contracts.errors import ProvisionerError

_NO_BODY = hashlib.sha256(b"").hexdigest()


class S3Source(ImageSource):
    """Fetches objects of one S3 service with one set of credentials."""

    def __init__(self, settings: S3Settings, context: BackEndContext) -> None:
        self._settings = settings
        self._name = context.name
        self.parallel_ranges = settings.ranges_of_an_image
        self._keys = Keys(settings, context.name)
        # Content-Encoding is only stored metadata here: an object store does not encode responses.
        options = settings.options(any_encoding=True, prepare_redirects=True)
        self._transport = HttpTransport(options, self.owns, self._sign, self._explain)

    def owns(self, url: ImageUrl) -> bool:
        return place_of(url, self._settings) is not None

    def prefixes(self) -> Sequence[str]:
        settings = self._settings
        if settings.buckets:
            return [f"s3://{text}" if "/" in text else f"s3://{text}/" for text in settings.buckets]
        endpoint = [] if settings.endpoint is None else [settings.endpoint.rstrip("/") + "/"]
        return [*(["s3://"] if settings.bare_urls else []), *endpoint]

    def checksum_files(self) -> Sequence[str]:
        return self._settings.checksum_files

    async def stat(self, url: ImageUrl) -> RemoteImage:
        return replace(await self._transport.stat(self._place(url).url), url=url)

    @asynccontextmanager
    async def open(
        self, url: ImageUrl, start: int = 0, stop: int | None = None, version: str | None = None
    ) -> AsyncIterator[ImageStream]:
        async with self._transport.open(self._place(url).url, start, stop, version) as stream:
            yield stream

    async def aclose(self) -> None:
        await self._transport.aclose()

    def _place(self, url: ImageUrl) -> Place:
        place = place_of(url, self._settings)
        if place is None:
            raise UrlNotAllowedError(f"source {self._name} does not serve this image URL")
        return place

    def _sign(self, method: str, url: ImageUrl, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Add a signature (version 4) over method, host, path and query. Blocking."""
        place = self._place(url)
        credentials = None if place.presigned else self._keys.get()
        # Amazon rejects a presigned url with an x-amz header that is not signed.
        checksum_mode = {"X-Amz-Checksum-Mode": "ENABLED"} if method == "HEAD" and not place.presigned else {}
        if credentials is None:
            return {**headers, **checksum_mode}
        now = datetime.now(UTC)
        signed: dict[str, str | list[str] | tuple[str]] = {
            "Host": url.netloc,
            "X-Amz-Content-Sha256": _NO_BODY,
            "X-Amz-Date": now.strftime("%Y%m%dT%H%M%SZ"),
            **({"X-Amz-Security-Token": credentials.session_token} if credentials.session_token else {}),
            **checksum_mode,
            **({"X-Amz-Request-Payer": "requester"} if self._settings.requester_pays else {}),
        }
        sign_v4_s3(
            method=method,
            url=urlsplit(url.text),
            region=place.region,
            headers=signed,
            credentials=credentials,
            content_sha256=_NO_BODY,
            date=now,
        )
        # Do not sign the other headers: proxies may change them, Accept-Encoding above all. The bytes are checked.
        return {**headers, **{name: str(value) for name, value in signed.items()}}

    def _explain(self, status: int, headers: Mapping[str, str], body: bytes, where: str) -> ProvisionerError | None:
        return meaning(status, headers, body, where, self._name, anonymous=self._keys.anonymous)
