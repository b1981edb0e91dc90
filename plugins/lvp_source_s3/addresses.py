"""Maps an image URL to an S3 object and the URL to fetch it from. Pure; uses no credentials.

A key is the URL's path unquoted once, byte for byte: ``%20`` is a space, ``+`` is a plus sign, ``%25`` a percent
sign. It is sent quoted as signing requires (RFC 3986, ``/`` kept), so that client and server sign the same text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

from lvp_source_s3.settings import BUCKET
from provisioner.contracts import ImageUrl

if TYPE_CHECKING:
    from lvp_source_s3.settings import S3Settings

# The signing region if none is configured; also the default of MinIO and most other servers.
DEFAULT_REGION = "us-east-1"
_AMAZON = re.compile(
    rf"(?:(?P<bucket>{BUCKET})\.)?s3(?:[.-](?P<dual>dualstack))?(?:[.-](?P<region>[a-z]{{2}}(?:-[a-z]+)+-\d))?"
    r"\.amazonaws\.com(?P<china>\.cn)?"
)


@dataclass(frozen=True, slots=True)
class Place:
    """An object, with the ``url`` to fetch it from and the ``region`` to sign for.

    If ``presigned``, the URL contains its own signature and is sent unchanged.
    """

    bucket: str
    key: str
    region: str
    url: str
    presigned: bool = False


def place_of(url: ImageUrl, settings: S3Settings) -> Place | None:
    """Return the object that ``url`` names, or None if this source does not serve the URL."""
    found = _bucket_of(url, settings)
    if found is None:
        return None
    bucket, rest, region = found
    presigned = re.search(r"(^|&)X-Amz-Signature=", url.query) is not None and url.scheme != "s3"
    if not rest or not (presigned or re.fullmatch(r"(versionId=[\w.%-]+)?", url.query)):
        return None
    key = unquote_to_bytes(rest)
    if not _is_listed(bucket, key, settings):
        return None
    region = region or settings.region or DEFAULT_REGION
    address = url.text if presigned else _address(bucket, key, region, settings, url.query)
    return Place(bucket, key.decode(errors="replace"), region, address, presigned)


def _bucket_of(url: ImageUrl, settings: S3Settings) -> tuple[str, str, str | None] | None:
    """Return (bucket, quoted key, region), with None as the region if the URL does not name one."""
    if url.scheme == "s3":
        known = settings.bare_urls or any(text.split("/")[0] == url.host for text in settings.buckets)
        return (url.host, url.path[1:], None) if known and re.fullmatch(BUCKET, url.host) else None
    if settings.endpoint is None:
        match = _AMAZON.fullmatch(url.host)
        if match is None or url.scheme != "https" or url.port != 443:
            return None
        bucket, region = match["bucket"], match["region"]
    else:
        endpoint, region = _endpoint(settings.endpoint), None
        if (url.scheme, url.port) != (endpoint.scheme, endpoint.port):
            return None
        if url.host == endpoint.host:
            bucket = None
        elif url.host.endswith(f".{endpoint.host}") and settings.addressing != "path":
            bucket = url.host.removesuffix(f".{endpoint.host}")
        else:
            return None
    quoted = url.path[1:]
    if bucket is None:
        bucket, _, quoted = quoted.partition("/")
    return (bucket, quoted, region) if re.fullmatch(BUCKET, bucket) else None


@lru_cache(maxsize=16)
def _endpoint(text: str) -> ImageUrl:
    """Return the endpoint of a source, parsed once."""
    return ImageUrl.parse(text)


def _is_listed(bucket: str, key: bytes, settings: S3Settings) -> bool:
    name = bucket.encode() + b"/" + key
    return not settings.buckets or any(
        name.startswith((text if "/" in text else f"{text}/").encode()) for text in settings.buckets
    )


def _address(bucket: str, key: bytes, region: str, settings: S3Settings, query: str) -> str:
    if settings.endpoint is None:
        scheme, domain = "https", "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        host = f"s3.{'dualstack.' if settings.dual_stack else ''}{region}.{domain}"
        # The certificate's wildcard covers one label, so a bucket name with dots must go in the path.
        in_path = settings.addressing == "path" or (settings.addressing == "auto" and "." in bucket)
    else:
        endpoint = _endpoint(settings.endpoint)
        scheme, host = endpoint.scheme, endpoint.netloc
        in_path = settings.addressing != "virtual"
    base = f"{scheme}://{host}/{bucket}" if in_path else f"{scheme}://{bucket}.{host}"
    return f"{base}/{quote(key, safe='/~')}" + (f"?{query}" if query else "")
