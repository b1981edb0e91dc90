"""What a ``[sources.NAME]`` table with ``plugin = "http"`` may say, and what fits together. Reads no file."""

from __future__ import annotations

import re

import msgspec

from provisioner.contracts import ByteSize, Duration, SecretRef, UrlPrefix
from provisioner.contracts.errors import InvalidRequestError
from provisioner.contracts.http_client import HttpOptions


class HttpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the source ``http``.

    ``urls`` are the prefixes it serves, as ``https://images.example.com/pub/``; the host may begin with ``*.``
    and the port may be ``*``. ``redirect_urls`` are prefixes a server may redirect to besides; no credentials
    are sent there. ``mirrors`` hold the same tree as the one entry of ``urls`` and are tried before it, in order;
    they are trusted like it, but get no credentials either.

    Credentials are a ``bearer_token``, a ``username`` with a ``password``, ``headers`` (name to secret) or a
    ``client_certificate`` with its ``client_key``. ``proxy`` is a url; ``trust_env`` takes proxies from the
    environment instead. ``rate_limit`` is in bytes a second, for all transfers of the source together.
    """

    urls: list[str]
    redirect_urls: list[str] = []
    mirrors: list[str] = []
    ca_file: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    bearer_token: SecretRef | None = None
    username: str | None = None
    password: SecretRef | None = None
    headers: dict[str, SecretRef] = {}
    proxy: str | None = None
    proxy_username: str | None = None
    proxy_password: SecretRef | None = None
    trust_env: bool = False
    # A host that is up answers the handshake within a second; ten cover a lost packet or two.
    connect_timeout: Duration = Duration(10)
    # Object stores think for seconds before the first byte; half a minute of silence is a dead peer.
    stall_timeout: Duration = Duration(30)
    connections: int = 16
    rate_limit: ByteSize | None = None

    def __post_init__(self) -> None:
        for fault in self._faults():
            raise ValueError(fault)

    def _faults(self) -> list[str]:
        prefixes = self.urls + self.redirect_urls + self.mirrors
        names = [*self.headers, *(["Authorization"] if self.bearer_token or self.username else [])]
        checks = {
            "urls must name at least one prefix, such as 'https://images.example.com/'": not self.urls,
            **{f"'{text}' is not the prefix of an http or https url": not _is_prefix(text) for text in prefixes},
            "mirrors stand in for exactly one entry of urls, without '*'": bool(self.mirrors)
            and (len(self.urls) != 1 or any("*" in text for text in self.urls + self.mirrors)),
            "client_key needs client_certificate": bool(self.client_key and not self.client_certificate),
            "username and password go together": (self.username is None) != (self.password is None),
            "username must not hold a colon": ":" in (self.username or ""),
            "bearer_token and username exclude each other": bool(self.bearer_token and self.username),
            "headers holds a name that is none": not all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in names),
            "headers holds a name twice": len({name.lower() for name in names}) != len(names),
            "headers must leave Host, Range, If-Range and Accept-Encoding alone": not _OWN.isdisjoint(
                name.lower() for name in names
            ),
            "proxy must be a url such as 'http://proxy.example.com:3128', without a user name": not _is_proxy(
                self.proxy
            ),
            "proxy and trust_env exclude each other": bool(self.proxy and self.trust_env),
            "proxy_username and proxy_password go together": (self.proxy_username is None)
            != (self.proxy_password is None),
            "connections must be 1 to 1000": not 1 <= self.connections <= 1000,
            "connect_timeout and stall_timeout must be over 0": self.connect_timeout <= 0 or self.stall_timeout <= 0,
            "rate_limit must be at least 1KiB": self.rate_limit is not None and self.rate_limit < 1024,
        }
        return [words for words, wrong in checks.items() if wrong]

    def options(self) -> HttpOptions:
        """As the transport wants them."""
        return HttpOptions(
            ca_file=self.ca_file,
            client_certificate=self.client_certificate,
            client_key=self.client_key,
            proxy=self.proxy,
            proxy_username=self.proxy_username,
            proxy_password=self.proxy_password,
            trust_env=self.trust_env,
            connect_timeout=self.connect_timeout,
            stall_timeout=self.stall_timeout,
            connections=self.connections,
            rate_limit=self.rate_limit,
        )


# What the transport itself says in a request.
_OWN = {"host", "range", "if-range", "accept-encoding", "connection", "content-length", "transfer-encoding"}


def _is_prefix(text: str) -> bool:
    try:
        return UrlPrefix.parse(text).scheme in {"http", "https"}
    except InvalidRequestError:
        return False


def _is_proxy(text: str | None) -> bool:
    return text is None or re.fullmatch(r"https?://[^/@?#\s]+/?", text) is not None
