"""The settings of named images, ``[images.NAME]``, and of catalogs, which are files of such tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from provisioner.config.signatures import SignatureSettings
from provisioner.contracts import Checksum, ImageUrl, refuse
from provisioner.contracts.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# A name needs no quotes in a shell and is never mistaken for a url.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# A part of a url that is looked up, such as {version}.
PLACEHOLDER = re.compile(r"\{([a-z]+)\}")


def is_image_name(text: str) -> bool:
    """Return whether ``text`` is a valid image name: up to 64 letters, digits, ``.``, ``_`` and ``-``."""
    return _NAME.fullmatch(text) is not None


class Simplestreams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The newest version of a product in a simplestreams index, as Ubuntu publishes it.

    ``url`` is that of the products file; ``base`` is what the paths in it are relative to; ``item`` is the item's key,
    such as ``disk1.img``.
    """

    url: str
    base: str
    product: str
    item: str

    def __post_init__(self) -> None:
        refuse(_faults_of_url("url", self.url))
        refuse(_faults_of_url("base", self.base))


class JsonIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A JSON document that names the newest image. ``location`` and ``checksum`` are JSON pointers (RFC 6901)."""

    url: str
    location: str
    checksum: str | None = None

    def __post_init__(self) -> None:
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        yield from _faults_of_url("url", self.url)
        for key, pointer in (("location", self.location), ("checksum", self.checksum)):
            if pointer is not None and not pointer.startswith("/"):
                yield f"{key} must be a JSON pointer, which begins with '/'"


class NamedImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[images.NAME]``: an image that a request may name instead of a url.

    Exactly one of ``url``, ``simplestreams`` and ``index`` says where it is. A url may have placeholders such as
    ``{version}``: the folder before the first one is listed, and the entry with the greatest numbers is taken.
    ``match`` limits the values of a placeholder by a regular expression; without it, a value consists of digits, dots,
    dashes and underscores, so that release candidates are left out. ``checksum_url`` is a checksum file that is not
    found by its name alone; it may have the placeholders of ``url``. ``signature`` is demanded of this image instead of
    what its source demands.
    """

    url: str | None = None
    simplestreams: Simplestreams | None = None
    index: JsonIndex | None = None
    match: dict[str, str] = msgspec.field(default_factory=dict)
    image_type: str = "qcow2"
    checksum: str | None = None
    checksum_url: str | None = None
    description: str = ""
    signature: SignatureSettings | None = None

    def __post_init__(self) -> None:
        refuse(self._faults())

    @property
    def placeholders(self) -> list[str]:
        """The names of the placeholders in ``url``, in order."""
        return list(dict.fromkeys(PLACEHOLDER.findall(self.url or "")))

    @property
    def asked_first(self) -> ImageUrl:
        """The url that is read first to find the newest image, with 0 for placeholders; that of a fixed image."""
        index = self.simplestreams or self.index
        return ImageUrl.parse(index.url if index is not None else PLACEHOLDER.sub("0", self.url or ""))

    def _faults(self) -> Iterator[str]:
        if sum(one is not None for one in (self.url, self.simplestreams, self.index)) != 1:
            yield "set exactly one of url, simplestreams and index"
        if self.url is not None:
            yield from _faults_of_url("url", PLACEHOLDER.sub("0", self.url))
            if "{" in self.url.partition("?")[2] or "{" in "/".join(self.url.split("/")[:3]):
                yield "url: placeholders may only be in its path"
        yield from self._faults_of_checksum()
        yield from self._faults_of_match()

    def _faults_of_checksum(self) -> Iterator[str]:
        if self.checksum is not None:
            if self.placeholders or self.url is None:
                yield "checksum needs a url without placeholders: the newest image has another one"
            try:
                Checksum.parse(self.checksum)
            except InvalidRequestError as error:
                yield error.message
        if self.checksum_url is not None:
            yield from _faults_of_url("checksum_url", PLACEHOLDER.sub("0", self.checksum_url))
            if self.url is None or not set(PLACEHOLDER.findall(self.checksum_url)) <= set(self.placeholders):
                yield "checksum_url: its placeholders must be those of url"
            if self.checksum is not None:
                yield "set either checksum or checksum_url, not both"

    def _faults_of_match(self) -> Iterator[str]:
        for name, expression in self.match.items():
            if name not in self.placeholders:
                yield f"match.{name}: url has no {{{name}}}"
            try:
                if re.compile(expression).groups:
                    yield f"match.{name} must have no groups other than (?:...)"
            except re.error as error:
                yield f"match.{name} is not a regular expression: {error}"


def _faults_of_url(key: str, text: str) -> Iterator[str]:
    try:
        ImageUrl.parse(text)
    except InvalidRequestError as error:
        yield f"{key}: {error.message.replace('image_url', 'it')}"


def urls_of(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the urls in an ``[images.NAME]`` table as it is in the document, and their keys. Placeholders become 0."""
    tables = {"": table, "simplestreams.": table.get("simplestreams"), "index.": table.get("index")}
    for path, one in tables.items():
        for key in ("url", "base", "checksum_url"):
            if isinstance(one, dict) and isinstance(text := one.get(key), str):
                yield path + key, PLACEHOLDER.sub("0", text)
    yield from signature_urls(table)


def signature_urls(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the urls among the files of a table's ``signature``, and their keys."""
    signature = table.get("signature")
    files = signature.get("files") if isinstance(signature, dict) else None
    for number, text in enumerate(files if isinstance(files, list) else ()):
        if isinstance(text, str) and "://" in text:
            yield f"signature.files[{number}]", text
