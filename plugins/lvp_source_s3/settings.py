"""What a table with ``plugin = "s3"`` or ``plugin = "minio"`` may say, and what fits together. Reads no file."""

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

    Without ``endpoint`` it is Amazon's, found by ``region`` (and by the url's own, where it names one), over both
    internet protocols with ``dual_stack``. ``endpoint`` is another service's, as ``https://s3.example.com``, where
    ``addressing`` says whether the bucket stands in the path or before the host (``virtual``). ``buckets``
    (``name`` or ``name/prefix/``) narrow what it serves; none means all that the credentials reach.

    Credentials are ``access_key`` and ``secret_key`` (with ``session_token``), references all of them; or what
    ``credentials`` names: the ``environment`` (``AWS_ACCESS_KEY_ID``, ``MINIO_ACCESS_KEY`` and so on), a shared
    credentials ``file`` (``credentials_file`` and ``profile``), the ``instance`` (web identity, container or
    machine role), the ``chain`` of these three, or ``anonymous``.
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
    # Whether s3://BUCKET/KEY is a url of this source when no bucket is listed; two sources cannot both have all.
    bare_urls: bool = True

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.endpoint is not None and not _is_endpoint(self.endpoint):
            yield "endpoint must be such as 'https://s3.example.com' or 'http://10.0.0.5:9000', without a path"
        if self.endpoint is not None and self.dual_stack:
            yield "dual_stack is for Amazon's own endpoints, not for another endpoint"
        if self.region is not None and not re.fullmatch(r"[a-z0-9-]{1,40}", self.region):
            yield "region must be such as 'eu-central-1'"
        for text in self.buckets:
            if not re.fullmatch(rf"{BUCKET}(/.*)?", text):
                yield f"'{text}' is no bucket name, alone or followed by a prefix"
        if (self.access_key is None) != (self.secret_key is None):
            yield "access_key and secret_key go together"
        if self.session_token is not None and self.access_key is None:
            yield "session_token goes with access_key and secret_key"
        if self.access_key is not None and self.credentials != "chain":
            yield "credentials and access_key exclude each other"
        if (self.credentials_file or self.profile) and (self.access_key or self.credentials not in {"chain", "file"}):
            yield "credentials_file and profile are for credentials = 'file' or 'chain'"


class MinioSettings(S3Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the source ``minio``: as ``s3``, with the endpoint given and the bucket in the path."""

    endpoint: str
    addressing: Literal["auto", "path", "virtual"] = "path"
    bare_urls: bool = False


def _is_endpoint(text: str) -> bool:
    try:
        url = ImageUrl.parse(text)
    except InvalidRequestError:
        return False
    return url.scheme in {"http", "https"} and url.path == "/" and not url.query and "?" not in text
