"""The newest image in a publisher's JSON index: simplestreams, or any document by JSON pointers. Pure functions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin

from provisioner.contracts.errors import ImageError

if TYPE_CHECKING:
    from provisioner.config.images import JsonIndex, Simplestreams


class Indexed(NamedTuple):
    """What an index says about the newest image: its url, the checksum as published, and the version."""

    url: str
    checksum: str | None
    version: str | None


def in_simplestreams(text: bytes, settings: Simplestreams) -> Indexed:
    """Return the newest version of a product. Raises ImageError if the index has none."""
    document = _parse(text, settings.url)
    versions = _at(document, "products", settings.product, "versions")
    if not isinstance(versions, dict):
        raise ImageError(f"{settings.url} has no product {settings.product!r}")
    offered = {
        version: item
        for version, body in versions.items()
        if isinstance(item := _at(body, "items", settings.item), dict) and isinstance(item.get("path"), str)
    }
    if not offered:
        raise ImageError(f"{settings.url} has no item {settings.item!r} of the product {settings.product!r}")
    version = max(offered)  # versions are dates
    checksum = offered[version].get("sha256")
    return Indexed(urljoin(settings.base, offered[version]["path"]), _text(checksum), version)


def in_json(text: bytes, settings: JsonIndex) -> Indexed:
    """Return the image that the document points to. Raises ImageError if it does not."""
    document = _parse(text, settings.url)
    location = pointed(document, settings.location)
    if not isinstance(location, str):
        raise ImageError(f"{settings.url} has no text at {settings.location}")
    checksum = None
    if settings.checksum is not None:
        checksum = _text(pointed(document, settings.checksum))
        if checksum is None:
            raise ImageError(f"{settings.url} has no text at {settings.checksum}")
    return Indexed(urljoin(settings.url, location), checksum, None)


def pointed(document: Any, pointer: str) -> Any:
    """Return the value at a JSON pointer (RFC 6901), None if there is none."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, list) and key.isdecimal() and int(key) < len(document):
            document = document[int(key)]
        else:
            document = _at(document, key)
    return document


def _parse(text: bytes, url: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{url} is not JSON") from error


def _at(document: Any, *keys: str) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
