"""The settings of a table with ``plugin = "s3"`` or ``plugin = "minio"``, and their validation. Reads no file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

from provisioner.contracts import AbsolutePath, ImageUrl, SecretRef, TransportSettings
from provisioner.contracts.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

Credentials = Literal["chain", "environment", "file", "instance", "anonymous"]
BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"


class S3Settings(TransportSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the source ``s3``.

    Without ``endpoint`` the service is Amazon S3 in ``region``, or in the region that the URL names; ``dual_stack``
    uses IPv4 and IPv6. ``endpoint`` is the URL of another service, such as ``https://s3.example.com``. ``addressing``
    puts the bucket name in the ``path`` or in the host name (``virtual``). ``buckets`` (``name`` or
    ``name/prefix/``) limit what the source serves; an empty list means everything the credentials can read.

    Credentials are ``access_key`` and ``secret_key``, optionally with ``session_token``, all of them references; or
    the place that ``credentials`` names: the ``environment`` (``AWS_ACCESS_KEY_ID``, ``MINIO_ACCESS_KEY`` and so
    on), a shared credentials ``file`` (``credentials_file`` and ``profile``), the ``instance`` (web identity,
    container or machine role), the ``chain`` of these three, or ``anonymous``.
    """

    endpoint: str | None = None
    region: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    dual_stack: bool = False
    buckets: list[str] = msgspec.field(default_factory=list)
    access_key: SecretRef | None = None
    secret_key: SecretRef | None = None
    session_token: SecretRef | None = None
    credentials: Credentials = "chain"
    credentials_file: AbsolutePath | None = None
    profile: str | None = None
    # Confirm that the caller pays for requests and transfers; the bucket's owner pays for all others.
    requester_pays: bool = False
    # Whether the source serves every s3://BUCKET/KEY if no bucket is listed. Only one source can.
    bare_urls: bool = True

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.endpoint is not None and not _is_endpoint(self.endpoint):
            yield "endpoint must be a URL such as 'https://s3.example.com' or 'http://10.0.0.5:9000', without a path"
        if self.endpoint is not None and self.dual_stack:
            yield "dual_stack works only without endpoint, that is with Amazon S3"
        if self.region is not None and not re.fullmatch(r"[a-z0-9-]{1,40}", self.region):
            yield "region must be a name such as 'eu-central-1'"
        for text in self.buckets:
            if not re.fullmatch(rf"{BUCKET}(/.*)?", text):
                yield f"'{text}' must be a bucket name, or a bucket name and a prefix such as 'images/golden/'"
        yield from self._faults_of_credentials()

    def _faults_of_credentials(self) -> Iterator[str]:
        if (self.access_key is None) != (self.secret_key is None):
            yield "access_key and secret_key must be set together"
        if self.session_token is not None and self.access_key is None:
            yield "session_token needs access_key and secret_key"
        if self.access_key is not None and self.credentials != "chain":
            yield "set either credentials or access_key, not both"
        if self.requester_pays and self.credentials == "anonymous":
            yield "requester_pays needs credentials: somebody must pay"
        if (self.credentials_file or self.profile) and (self.access_key or self.credentials not in {"chain", "file"}):
            yield "credentials_file and profile need credentials = 'file' or 'chain'"


class MinioSettings(S3Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the source ``minio``: those of ``s3`` with a required ``endpoint`` and the bucket in the path."""

    endpoint: str
    addressing: Literal["auto", "path", "virtual"] = "path"
    bare_urls: bool = False


def _is_endpoint(text: str) -> bool:
    try:
        url = ImageUrl.parse(text)
    except InvalidRequestError:
        return False
    return url.scheme in {"http", "https"} and url.path == "/" and not url.query and "?" not in text
