"""Every setting of the daemon's own, its type, and the reason of its default. Back ends bring their own settings.

A ``Config`` that exists is valid as far as one can tell without the plugins; the registry checks their tables.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from provisioner.config.access import AuditSettings, AuthSettings
from provisioner.contracts import ByteSize, Checksum, Duration
from provisioner.contracts.errors import InvalidRequestError

Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if address.startswith("unix:/"):
        return
    if not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f'{address!r} is not an address such as "127.0.0.1:8080", "[::1]:8080" or "unix:/path"')


def is_local(address: str) -> bool:
    """Whether only programs of this machine can reach that address."""
    host = address.rpartition(":")[0].strip("[]")
    return address.startswith("unix:") or host in {"::1", "localhost"} or host.startswith("127.")


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[server]``: where the API listens and how clients are met."""

    # Loopback: a fresh installation must not be reachable before its owner has said how.
    bind: list[str] = msgspec.field(default_factory=lambda: ["127.0.0.1:8080"])
    tls_certificate: str | None = None
    tls_key: str | None = None
    # With a CA, a client certificate it signed lets its holder in.
    client_ca: str | None = None
    # Revocation lists of that CA (PEM, several after one another). A list that has expired lets no certificate in.
    client_crl: str | None = None
    # "optional" lets token holders in without a certificate.
    client_certificate: Literal["required", "optional"] = "optional"
    # Whatever is still maintained speaks 1.3.
    tls_minimum: Literal["1.2", "1.3"] = "1.3"
    # /health and the log warn when the server's certificate, the CA or its revocation list ends sooner than this.
    warn_before_expiry: Duration = Duration(14 * 86400)
    # Tokens over plain HTTP can be read on the way: off loopback this has to be said in so many words.
    allow_plain_http: bool = False
    # The contract's number: health says "degraded" while more jobs than this are pending or running.
    degraded_above: Natural = 2
    # A job's request is under 1 KiB; this is the contract's limit.
    max_body: ByteSize = ByteSize(64 * 1024)
    # Open connections; one client with keep-alive uses one.
    max_connections: Positive = 256
    # Of these, what one address may have, so that it cannot keep all others out.
    max_connections_per_address: Positive = 64

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.client_ca is not None and self.tls_certificate is None:
            raise ValueError("client_ca needs tls_certificate and tls_key")
        if self.client_crl is not None and self.client_ca is None:
            raise ValueError("client_crl needs client_ca")
        if self.client_certificate == "required" and self.client_ca is None:
            raise ValueError('client_certificate = "required" needs client_ca')
        if not self.bind:
            raise ValueError("bind must name at least one address")
        for address in self.bind:
            _check_address(address)
            if self.tls_certificate is None and not self.allow_plain_http and not is_local(address):
                raise ValueError(
                    f"{address} would be served over plain HTTP, where tokens can be read on the way; "
                    "give tls_certificate and tls_key, or set allow_plain_http = true"
                )


class JobSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[jobs]``: how many, how long, and what a restart means."""

    # Two saturate a disk; more only make each slower. The contract's number.
    max_concurrent: Positive = 2
    # Past this the client is told to come back (429) rather than left waiting for hours.
    max_queued: Positive = 100
    on_restart: Literal["retry", "fail"] = "retry"
    # A job that took the daemon down twice is not tried a fourth time.
    max_attempts: Positive = 3
    # Running jobs may end by themselves for this long at shutdown; systemd's own limit is 90 s.
    shutdown_grace: Duration = Duration(30)
    # Ended jobs are shown for this long, counted in the time the service runs: a wrong clock deletes nothing.
    keep_history: Duration = Duration(90 * 86400)
    # The kernel's I/O class of all the service does. "none" is the kernel's default: guests' disks may be elsewhere.
    io_class: Annotated[str, Meta(pattern=r"^(none|idle|best-effort:[0-7])$")] = "none"


class PrewarmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[[cache.prewarm]]``: an image to have in the cache before anybody asks for it."""

    url: str
    image_type: str = "qcow2"
    checksum: str | None = None
    # Cloud images are published daily at the most.
    every: Duration = Duration(86400)

    def __post_init__(self) -> None:
        if self.every < 60:
            raise ValueError("every must be at least 1m")
        if self.checksum is not None:
            try:
                Checksum.parse(self.checksum)
            except InvalidRequestError as error:
                raise ValueError(error.message) from error


class CacheSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[cache]``: verified images kept on this host."""

    # Default: cache in the state directory.
    directory: str | None = None
    # A few dozen cloud images; least recently used ones go first.
    max_size: ByteSize = ByteSize(200 * 2**30)
    # Never filled further: the cache usually shares its file system with something that matters.
    min_free: ByteSize = ByteSize(2**30)
    # An image nobody vouches for is refused unless this is switched off.
    require_checksum: bool = True
    # Tries in which less than 64 KiB came in all; with the growing pauses, half a minute for a server to return.
    download_attempts: Positive = 8
    # "give-back": what an image takes of the host's page cache is given back at once, since guests' disks live there
    # too. "keep" leaves it to the kernel: quicker where one image is put on many volumes one after the other.
    page_cache: Literal["give-back", "keep"] = "give-back"
    # Images to fetch at the start and to look at again on a schedule.
    prewarm: list[PrewarmSettings] = msgspec.field(default_factory=list)


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[log]``: standard error, one line an event."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


# A back end's table: "plugin" and the plugin's own keys, which the registry checks.
BackEndTable = dict[str, Any]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    # Job history, tokens and, unless they are given places of their own, cache and volumes.
    state_directory: str = "/var/lib/libvirt-volume-provisioner"
    server: ServerSettings = msgspec.field(default_factory=ServerSettings)
    auth: AuthSettings = msgspec.field(default_factory=AuthSettings)
    jobs: JobSettings = msgspec.field(default_factory=JobSettings)
    cache: CacheSettings = msgspec.field(default_factory=CacheSettings)
    log: LogSettings = msgspec.field(default_factory=LogSettings)
    audit: AuditSettings = msgspec.field(default_factory=AuditSettings)
    sources: dict[str, BackEndTable] = msgspec.field(default_factory=dict)
    # Image format -> converter: its name, or a table with "plugin" and its settings.
    converters: dict[str, str | BackEndTable] = msgspec.field(default_factory=dict)
    targets: dict[str, BackEndTable] = msgspec.field(default_factory=dict)
    guards: dict[str, BackEndTable] = msgspec.field(default_factory=dict)
    observers: dict[str, BackEndTable] = msgspec.field(default_factory=dict)

    @property
    def cache_directory(self) -> str:
        """Where images are kept."""
        return self.cache.directory or f"{self.state_directory}/cache"

    @property
    def token_file(self) -> str:
        """Where token digests are kept."""
        return self.auth.token_file or f"{self.state_directory}/tokens.json"

    @property
    def database(self) -> str:
        """Where jobs are kept."""
        return f"{self.state_directory}/jobs.sqlite"


# What converts a format unless the config says otherwise. Native: measured faster than qemu-img, and no child process.
DEFAULT_CONVERTERS: dict[str, str] = {"raw": "native", "qcow2": "native"}
