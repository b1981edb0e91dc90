"""The settings of a ``[sources.NAME]`` table with ``plugin = "oci"``, and their validation. Reads no file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from provisioner.contracts import SecretRef, TransportSettings, UrlPrefix
from provisioner.contracts.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator


class OciSettings(TransportSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the source ``oci``.

    ``registries`` are what it serves: a registry (``ghcr.io``) or a part of one (``ghcr.io/example/images``); the host
    may begin with ``*.`` and the port may be ``*``. ``plain_http`` talks HTTP without TLS to all of them.
    ``redirect_urls`` are prefixes that a registry may redirect to when an image is downloaded, ``token_urls`` prefixes
    of token services on other hosts than the registry's. No credentials are sent to the former.

    Credentials are a ``username`` with a ``password``, or an ``auth_file`` in the form of Docker's ``config.json``.
    """

    registries: list[str]
    plain_http: bool = False
    redirect_urls: list[str] = msgspec.field(default_factory=list)
    token_urls: list[str] = msgspec.field(default_factory=list)
    # What to choose from an image index; the images of a host's guests are nearly always of its own architecture.
    architecture: str | None = None
    username: str | None = None
    password: SecretRef | None = None
    auth_file: SecretRef | None = None

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if not self.registries:
            yield "registries must name at least one registry, such as 'ghcr.io' or 'ghcr.io/example/images'"
        for text in self.registries:
            if "://" in text or not _is_prefix(f"https://{text}"):
                yield f"registries: '{text}' is not a registry such as 'ghcr.io', with or without a repository"
        for text in self.redirect_urls + self.token_urls:
            if not _is_prefix(text):
                yield f"'{text}' is not a prefix of http or https URLs"
        if self.architecture is not None and not re.fullmatch(r"[a-z0-9]+", self.architecture):
            yield "architecture must be a name that OCI uses, such as 'amd64' or 'arm64'"
        if (self.username is None) != (self.password is None):
            yield "username and password must be set together"
        if ":" in (self.username or ""):
            yield "username must not contain a colon"
        if self.username is not None and self.auth_file is not None:
            yield "set either username or auth_file, not both"

    @property
    def scheme(self) -> str:
        """The scheme of the registries' API."""
        return "http" if self.plain_http else "https"


def _is_prefix(text: str) -> bool:
    try:
        prefix = UrlPrefix.parse(text)
    except InvalidRequestError:
        return False
    return prefix.scheme in {"http", "https"}
