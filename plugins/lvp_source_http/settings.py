"""The settings of a ``[sources.NAME]`` table with ``plugin = "http"``, and their validation. Reads no file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from provisioner.contracts import SecretRef, TransportSettings, UrlPrefix
from provisioner.contracts.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Request headers that the transport sets itself.
_OWN = {"host", "range", "if-range", "accept-encoding", "connection", "content-length", "transfer-encoding"}


class HttpSettings(TransportSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the source ``http``.

    ``urls`` are the prefixes it serves, such as ``https://images.example.com/pub/``; the host may begin with ``*.``
    and the port may be ``*``. ``redirect_urls`` are further prefixes a server may redirect to; no credentials
    are sent there. ``mirrors`` serve the same tree as the single entry of ``urls`` and are tried before it, in order;
    they are trusted like that entry, but no credentials are sent to them.

    Credentials are a ``bearer_token``, a ``username`` with a ``password``, ``headers`` (name to secret) or a
    ``client_certificate`` with its ``client_key``.
    """

    urls: list[str]
    redirect_urls: list[str] = msgspec.field(default_factory=list)
    mirrors: list[str] = msgspec.field(default_factory=list)
    bearer_token: SecretRef | None = None
    username: str | None = None
    password: SecretRef | None = None
    headers: dict[str, SecretRef] = msgspec.field(default_factory=dict)

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        yield from self._faults_of_urls()
        if (self.username is None) != (self.password is None):
            yield "username and password must be set together"
        if ":" in (self.username or ""):
            yield "username must not contain a colon"
        if self.bearer_token and self.username:
            yield "set either bearer_token or username, not both"
        yield from self._faults_of_headers()

    def _faults_of_urls(self) -> Iterator[str]:
        if not self.urls:
            yield "urls must name at least one prefix, such as 'https://images.example.com/'"
        for text in self.urls + self.redirect_urls + self.mirrors:
            if not _is_prefix(text):
                yield f"'{text}' is not a prefix of http or https URLs"
        if self.mirrors and (len(self.urls) != 1 or any("*" in text for text in self.urls + self.mirrors)):
            yield "mirrors need exactly one entry in urls, and no '*' in either"

    def _faults_of_headers(self) -> Iterator[str]:
        names = [name.lower() for name in self.headers]
        if self.bearer_token or self.username:
            names.append("authorization")
        if not all(re.fullmatch(r"[a-z0-9-]+", name) for name in names):
            yield "headers contains an invalid header name"
        if len(set(names)) != len(names):
            yield "headers sets the same header twice"
        if not _OWN.isdisjoint(names):
            yield f"headers must not set any of {', '.join(sorted(_OWN))}"


def _is_prefix(text: str) -> bool:
    try:
        return UrlPrefix.parse(text).scheme in {"http", "https"}
    except InvalidRequestError:
        return False
