"""Checks what the tables of a configuration say of each other: each image and signature needs a source and a converter.

A wrong one would fail at each use instead of at the start.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from provisioner.back_ends import names
from provisioner.config import Faults, plugin_tables, show
from provisioner.config.images import signature_urls, urls_of
from provisioner.contracts import ImageUrl
from provisioner.contracts.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.back_ends import BackEnds


def check_references(document: Mapping[str, Any], back_ends: BackEnds, faults: Faults, *, sources_known: bool) -> None:
    """Add images without a source or converter and signatures of another source to ``faults``.

    ``sources_known``: every table of a source is valid, so a url without one is wrong.
    """
    _prewarm(document, back_ends, faults, sources_known=sources_known)
    _images(document, back_ends, faults, sources_known=sources_known)
    _signatures(plugin_tables(document)["sources"], back_ends, faults)


def _prewarm(document: Mapping[str, Any], back_ends: BackEnds, faults: Faults, *, sources_known: bool) -> None:
    """Report images to prewarm that no source serves or no converter reads; they would fail at each attempt."""
    cache = document.get("cache")
    images = cache.get("prewarm") if isinstance(cache, dict) else None
    formats = plugin_tables(document)["converters"]
    known = document["images"] if isinstance(document.get("images"), dict) else {}
    for number, image in enumerate(images if isinstance(images, list) else ()):
        path, (url, image_type) = f"cache.prewarm[{number}]", _prewarmed(image)
        named = image.get("image") if isinstance(image, dict) else None
        if isinstance(named, str) and named not in known:
            faults.add(f"{path}.image", f"there is no image named {show(named)}; there are: {names(known)}")
        if image_type not in formats:
            faults.add(f"{path}.image_type", f"found {show(image_type)}, allowed: {names(formats)}")
        if sources_known and url and not any(source.owns(url) for source in back_ends.sources.values()):
            faults.add(f"{path}.url", f"{url} belongs to no configured source")


def _images(document: Mapping[str, Any], back_ends: BackEnds, faults: Faults, *, sources_known: bool) -> None:
    """Report named images that no source serves or no converter reads."""
    formats = plugin_tables(document)["converters"]
    for name, image in document["images"].items() if isinstance(document.get("images"), dict) else ():
        if not isinstance(image, dict):
            continue
        image_type = image.get("image_type", "qcow2")
        if isinstance(image_type, str) and image_type not in formats:
            faults.add(f"images.{name}.image_type", f"found {show(image_type)}, allowed: {names(formats)}")
        for key, text in urls_of(image):
            with suppress(InvalidRequestError):  # reported by ``decode``
                url = ImageUrl.parse(text)
                if sources_known and not any(source.owns(url) for source in back_ends.sources.values()):
                    faults.add(f"images.{name}.{key}", f"{url} belongs to no configured source")


def _signatures(tables: Mapping[str, Mapping[str, Any]], back_ends: BackEnds, faults: Faults) -> None:
    """Report signatures that a source cannot fetch."""
    for name, source in back_ends.sources.items():
        for key, text in signature_urls(tables[name]):
            with suppress(InvalidRequestError):  # reported with the table
                url = ImageUrl.parse(text)
                if not source.owns(url):
                    faults.add(f"sources.{name}.{key}", f"{url} does not belong to this source")


def _prewarmed(image: object) -> tuple[ImageUrl | None, str]:
    """Return the url, None if it is malformed, and the type of an image to prewarm."""
    table = image if isinstance(image, dict) else {}
    text, image_type = table.get("url"), table.get("image_type") or "qcow2"
    try:
        url = ImageUrl.parse(text if isinstance(text, str) else "")
    except InvalidRequestError:
        url = None
    return url, image_type if isinstance(image_type, str) else "qcow2"
