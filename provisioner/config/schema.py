"""The daemon's settings, their types and the reasons for their defaults. Back ends define their own settings.

A ``Config`` instance is valid except for the plugins' tables, which the registry checks.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from provisioner.config.access import AuditSettings, AuthSettings
from provisioner.config.images import NamedImage, is_image_name
from provisioner.contracts import AbsolutePath, ByteSize, Checksum, Duration, ImageUrl, refuse
from provisioner.contracts.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
# Bytes of a unix socket's path, a limit of Linux.
_MAX_SOCKET_PATH = 107


def _is_address(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return address.startswith("unix:/") or bool(host and port.isdecimal() and int(port) <= 65535)


def is_local(address: str) -> bool:
    """Return whether only local programs can reach the address."""
    host = address.rpartition(":")[0].strip("[]")
    return address.startswith("unix:") or host in {"::1", "localhost"} or host.startswith("127.")


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[server]``: addresses, TLS and connection limits of the API."""

    # Loopback, so that a fresh installation is not reachable before it is configured.
    bind: list[str] = msgspec.field(default_factory=lambda: ["127.0.0.1:8080"])
    tls_certificate: AbsolutePath | None = None
    tls_key: AbsolutePath | None = None
    # Accept client certificates that this CA signed.
    client_ca: AbsolutePath | None = None
    # Revocation lists of that CA (PEM, concatenated). If a list has expired, every client certificate is rejected.
    client_crl: AbsolutePath | None = None
    # "optional" also accepts clients with a token and no certificate.
    client_certificate: Literal["required", "optional"] = "optional"
    # All maintained clients support TLS 1.3.
    tls_minimum: Literal["1.2", "1.3"] = "1.3"
    # /health and the log warn if the server certificate, the CA or its revocation list expires within this time.
    warn_before_expiry: Duration = Duration(14 * 86400)
    # Tokens can be intercepted over plain HTTP, so addresses other than loopback need this explicitly.
    allow_plain_http: bool = False
    # /health reports "degraded" while more jobs than this are pending or running. The API contract sets 2.
    degraded_above: Natural = 2
    # A job request is under 1 KiB; the API contract sets this limit.
    max_body: ByteSize = ByteSize(64 * 1024)
    # Open connections. A client with keep-alive uses one.
    max_connections: Positive = 256
    # Open connections per address, so that one address cannot lock out the others.
    max_connections_per_address: Positive = 64
    # Open event streams. Each keeps a connection, so half of the connections stay free for requests.
    max_event_streams: Positive = 128
    # Open event streams per address, half of its connections.
    max_event_streams_per_address: Positive = 32
    # Serve the web page at "/". Its files hold no data; what it shows comes from the API, with the user's credential.
    page: bool = True

    def __post_init__(self) -> None:
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        if (self.tls_certificate is None) != (self.tls_key is None):
            yield "tls_certificate and tls_key must be set together"
        if self.client_ca is not None and self.tls_certificate is None:
            yield "client_ca needs tls_certificate and tls_key"
        if self.client_crl is not None and self.client_ca is None:
            yield "client_crl needs client_ca"
        if self.client_certificate == "required" and self.client_ca is None:
            yield 'client_certificate = "required" needs client_ca'
        if not self.bind:
            yield "bind must name at least one address"
        for address in self.bind:
            if not _is_address(address):
                yield f'{address!r} is not an address such as "127.0.0.1:8080", "[::1]:8080" or "unix:/path"'
            elif address.startswith("unix:") and len(os.fsencode(address[5:])) > _MAX_SOCKET_PATH:
                yield f"{address}: the path of a unix socket has at most {_MAX_SOCKET_PATH} bytes"
            elif self.tls_certificate is None and not self.allow_plain_http and not is_local(address):
                yield (
                    f"{address} would be served over plain HTTP, where tokens can be intercepted; "
                    "set tls_certificate and tls_key, or allow_plain_http = true"
                )


class JobSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[jobs]``: concurrency, history, and what happens to jobs on a restart."""

    # Two jobs saturate a disk; more only slow each other down. The API contract sets 2.
    max_concurrent: Positive = 2
    # If the queue is full, the client gets 429 instead of waiting for hours.
    max_queued: Positive = 100
    on_restart: Literal["retry", "fail"] = "retry"
    # Limits how often a job that crashes the daemon is retried.
    max_attempts: Positive = 3
    # Time for running jobs to finish at shutdown; systemd's limit is 90 s.
    shutdown_grace: Duration = Duration(30)
    # How long to keep ended jobs, counted in service uptime so that a wrong clock deletes nothing.
    keep_history: Duration = Duration(90 * 86400)
    # The I/O scheduling class of the service. "none" keeps the kernel's default: guests' disks may be elsewhere.
    io_class: Annotated[str, Meta(pattern=r"^(none|idle|best-effort:[0-7])$")] = "none"


class PrewarmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[[cache.prewarm]]``: an image to download into the cache in advance, by its ``url`` or as a named ``image``."""

    url: str | None = None
    image: str | None = None
    # Default: qcow2, or the type of the named image.
    image_type: str | None = None
    checksum: str | None = None
    # Cloud images are published at most daily.
    every: Duration = Duration(86400)

    def __post_init__(self) -> None:
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        if self.every < 60:
            yield "every must be at least 1m"
        if (self.url is None) == (self.image is None):
            yield "set either url or image"
        if self.url is not None:
            try:
                ImageUrl.parse(self.url)
            except InvalidRequestError as error:
                yield f"url: {error.message.replace('image_url', 'it')}"
        if self.image is not None and (self.checksum is not None or self.image_type is not None):
            yield "checksum and image_type go with url; a named image has its own in [images.NAME]"
        if self.checksum is not None:
            try:
                Checksum.parse(self.checksum)
            except InvalidRequestError as error:
                yield error.message


class CacheSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[cache]``: the cache of verified images."""

    # Default: cache in the state directory.
    directory: AbsolutePath | None = None
    # A few dozen cloud images. The least recently used ones are evicted first.
    max_size: ByteSize = ByteSize(200 * 2**30)
    # Free space to leave on the file system, which the cache usually shares with other data.
    min_free: ByteSize = ByteSize(2**30)
    # The largest image that a client may upload; 0 refuses uploads. A quarter of the default max_size, because uploaded
    # images are not evicted.
    max_upload: ByteSize = ByteSize(50 * 2**30)
    # Reject images without a checksum.
    require_checksum: bool = True
    # Attempts with less than 64 KiB received in total; with the backoff, a server has half a minute to return.
    download_attempts: Positive = 8
    # "give-back" drops images from the page cache after use, which guests' disks need too. "keep" leaves this to the
    # kernel, which is faster if one image is written to many volumes in a row.
    page_cache: Literal["give-back", "keep"] = "give-back"
    # Images to download at startup and to refresh on a schedule.
    prewarm: list[PrewarmSettings] = msgspec.field(default_factory=list)


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[log]``: the log on standard error, one line per event."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


# A back end's table: "plugin" and the plugin's own keys, which the registry checks.
BackEndTable = dict[str, Any]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration file."""

    # Job history and tokens; also cache and volumes unless they have a directory of their own.
    state_directory: AbsolutePath = AbsolutePath("/var/lib/libvirt-volume-provisioner")
    server: ServerSettings = msgspec.field(default_factory=ServerSettings)
    auth: AuthSettings = msgspec.field(default_factory=AuthSettings)
    jobs: JobSettings = msgspec.field(default_factory=JobSettings)
    cache: CacheSettings = msgspec.field(default_factory=CacheSettings)
    log: LogSettings = msgspec.field(default_factory=LogSettings)
    audit: AuditSettings = msgspec.field(default_factory=AuditSettings)
    # Files with further [images.NAME] and [sources.NAME] tables, such as the catalog that the packages contain.
    catalogs: list[AbsolutePath] = msgspec.field(default_factory=list)
    images: dict[str, NamedImage] = msgspec.field(default_factory=dict)
    sources: dict[str, BackEndTable] = msgspec.field(default_factory=dict)
    # Image format -> converter: a plugin name, or a table with "plugin" and its settings.
    converters: dict[str, str | BackEndTable] = msgspec.field(default_factory=dict)
    targets: dict[str, BackEndTable] = msgspec.field(default_factory=dict)
    guards: dict[str, BackEndTable] = msgspec.field(default_factory=dict)
    observers: dict[str, BackEndTable] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse(
            f"images.{name}: a name consists of letters, digits, '.', '_' and '-'"
            for name in self.images
            if not is_image_name(name)
        )

    @property
    def cache_directory(self) -> str:
        """The directory of the image cache."""
        return self.cache.directory or f"{self.state_directory}/cache"

    @property
    def token_file(self) -> str:
        """The file of token digests."""
        return self.auth.token_file or f"{self.state_directory}/tokens.json"

    @property
    def database(self) -> str:
        """The job database."""
        return f"{self.state_directory}/jobs.sqlite"


# The default converters. "native" measured faster than qemu-img and needs no child process.
DEFAULT_CONVERTERS: dict[str, str] = {"raw": "native", "qcow2": "native"}
