"""Convert an environment file with ``MINIO_*`` and ``LVM_*`` settings into a configuration.

Secrets are never copied: the configuration refers to files that the administrator fills.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tomli_w

from provisioner.config.schema import is_local
from provisioner.contracts.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SECRETS = "/etc/libvirt-volume-provisioner/secrets"
# The known variables; synonyms are in order of preference.
ENDPOINT = ("MINIO_ENDPOINT", "MINIO_URL")
SECURE = ("MINIO_SECURE", "MINIO_USE_SSL")
UNVERIFIED = ("MINIO_SKIP_SSL_VERIFY",)
ACCESS_KEY = ("MINIO_ACCESS_KEY", "MINIO_ACCESS_KEY_ID")
SECRET_KEY = ("MINIO_SECRET_KEY", "MINIO_SECRET_ACCESS_KEY")
BUCKET = ("MINIO_BUCKET",)
REGION = ("MINIO_REGION",)
GROUP = ("LVM_VOLUME_GROUP", "LVM_VG", "VOLUME_GROUP")
POOL = ("LVM_THIN_POOL",)
RETRIES = ("MINIO_RETRY_ATTEMPTS",)
CACHE = ("IMAGE_CACHE_DIR", "CACHE_DIR")
HOST = ("HOST", "API_HOST", "LISTEN_ADDR")
PORT = ("PORT", "API_PORT")
CERTIFICATE = ("SERVER_CERT", "TLS_CERT", "TLS_CERT_FILE", "SERVER_CERT_PATH")
KEY = ("SERVER_KEY", "TLS_KEY", "TLS_KEY_FILE", "SERVER_KEY_PATH")
CLIENT_CA = ("CLIENT_CA_CERT", "TLS_CA", "TLS_CA_FILE", "CLIENT_CA_CERT_PATH", "CLIENT_CA")
TOKENS = ("API_TOKENS_FILE", "API_TOKENS", "API_TOKEN")
LEVEL = ("LOG_LEVEL",)
FORMAT = ("LOG_FORMAT",)
CONCURRENT = ("MAX_CONCURRENT_JOBS", "MAX_CONCURRENT")
# The older service listened on every address unless it was told otherwise.
OLD_HOST = "0.0.0.0"  # noqa: S104 - read, not bound
DEFAULT_PORT = 8080
# With a client CA it used TLS, and these files unless it was told otherwise.
OLD_CERTIFICATE = "/etc/ssl/certs/server.crt"
OLD_KEY = "/etc/ssl/private/server.key"
# Variables that have no key here, and why.
REFUSED = {
    "DB_PATH": "the job history is not imported; a new one starts in state_directory",
    "DATABASE_PATH": "the job history is not imported; a new one starts in state_directory",
    "MINIO_RETRY_BACKOFF_MS": "the pauses between the attempts of a download are fixed",
    "LVM_RETRY_ATTEMPTS": "LVM commands are not repeated; lock_patience sets how long they wait for a lock",
    "LVM_RETRY_BACKOFF_MS": "LVM commands are not repeated; lock_patience sets how long they wait for a lock",
    "REQUEST_TIMEOUT": "jobs have no time limit; stall_timeout of a source ends a dead transfer",
    "CACHE_MAX_AGE": "images are not evicted by age; max_size and min_free in [cache] limit the cache",
    "CACHE_EVICTION_INTERVAL": "images are evicted when room is needed, not on a schedule",
}


@dataclass(slots=True)
class Imported:
    """A configuration as TOML, and the remaining manual steps, one sentence each."""

    toml: str
    to_do: list[str] = field(default_factory=list)


def import_env(path: Path) -> Imported:
    """Convert the environment file ``path`` into a configuration. Raises ConfigError."""
    try:
        variables = parse_env(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return _Import(variables).made()


def parse_env(text: str) -> dict[str, str]:
    """Return the assignments of an environment file, quoted as for systemd or a shell.

    Raises ValueError naming the line.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*", line)
        if match is None:
            if line.strip() and not line.lstrip().startswith(("#", ";")):
                raise ValueError(f"line {number} is not an assignment such as NAME=value")
            continue
        try:
            found[match[1]] = " ".join(shlex.split(match[2], comments=match[2][:1] not in {"'", '"'}))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return found


class _Import:
    """One import. Known variables are removed as they are converted; the rest is reported."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._left = {name: value for name, value in variables.items() if value}
        self._document: dict[str, Any] = {}
        self._to_do: list[str] = []

    def made(self) -> Imported:
        for section in (self._server, self._tokens, self._jobs, self._cache, self._log, self._source, self._target):
            section()
        for name in sorted(self._left):
            why = REFUSED.get(name, "it is unknown")
            self._to_do.append(f"{name} was left out: {why}")
        return Imported(tomli_w.dumps(self._document), self._to_do)

    def _take(self, names: tuple[str, ...]) -> str | None:
        given = [(name, self._left.pop(name)) for name in names if name in self._left]
        for name, value in given[1:]:
            if value != given[0][1]:
                self._to_do.append(f"{name} was left out: {given[0][0]} says otherwise and was used")
        return given[0][1] if given else None

    def _put(self, section: str, **values: object) -> None:
        given = {key: value for key, value in values.items() if value is not None}
        if given:
            self._document.setdefault(section, {}).update(given)

    def _number(self, names: tuple[str, ...], most: int | None = None) -> int | None:
        value = self._take(names)
        if value is None:
            return None
        if not value.isdecimal() or not 1 <= int(value) <= (most or int(value)):
            self._to_do.append(f"{names[0]} was left out: {value} is not a number of at least 1")
            return None
        return int(value)

    def _server(self) -> None:
        host, port = self._take(HOST), self._number(PORT, 65535)
        certificate, key, authority = self._take(CERTIFICATE), self._take(KEY), self._take(CLIENT_CA)
        if authority is not None:
            certificate = certificate or self._assumed(CERTIFICATE, OLD_CERTIFICATE)
            key = key or self._assumed(KEY, OLD_KEY)
        if (certificate is None) != (key is None):
            raise ConfigError(
                f"the file has a certificate or a key for TLS, but not both; add {CERTIFICATE[0]} and {KEY[0]}, or "
                "remove the one that is there to go without TLS"
            )
        self._put("server", tls_certificate=certificate, tls_key=key, client_ca=authority)
        if certificate or host is not None or port is not None:
            self._bind(host or OLD_HOST, port or DEFAULT_PORT, tls=certificate is not None)

    def _assumed(self, names: tuple[str, ...], default: str) -> str:
        self._to_do.append(f"{names[0]} is missing; the old service then used {default}, and so does the result")
        return default

    def _bind(self, host: str, port: int, *, tls: bool) -> None:
        address = f"{f'[{host}]' if ':' in host else host}:{port}"
        if not tls and not is_local(address):
            self._to_do.append(
                f"the old service listened on {address} without TLS, where tokens can be read on the network; set "
                "tls_certificate, tls_key and bind in [server], or bind and allow_plain_http = true"
            )
            address = f"127.0.0.1:{port}"
        self._put("server", bind=[address])

    def _tokens(self) -> None:
        if self._take(TOKENS) is not None:
            self._to_do.append(
                "API tokens are not imported: the old ones stop working; create a new one for each client with: "
                "lvp token create NAME"
            )

    def _jobs(self) -> None:
        self._put("jobs", max_concurrent=self._number(CONCURRENT))

    def _cache(self) -> None:
        self._put("cache", directory=self._take(CACHE), download_attempts=self._number(RETRIES))

    def _log(self) -> None:
        level, form = self._take(LEVEL), self._take(FORMAT)
        names = {"warn": "warning", "fatal": "error", "panic": "error", "trace": "debug"}
        if level is not None:
            name = names.get(level.lower(), level.lower())
            if name in {"debug", "info", "warning", "error"}:
                self._put("log", level=name)
            else:
                self._to_do.append(f"{LEVEL[0]} was left out: {level} is not debug, info, warning or error")
        if form is not None:
            self._put("log", format="json" if form.lower() == "json" else "text")

    def _source(self) -> None:
        endpoint, secure, unverified = self._take(ENDPOINT), self._take(SECURE), self._take(UNVERIFIED)
        access, secret = self._take(ACCESS_KEY), self._take(SECRET_KEY)
        bucket, region = self._take(BUCKET), self._take(REGION)
        if _is_true(unverified):
            self._to_do.append(
                f"{UNVERIFIED[0]} was left out: the server's certificate is always checked; if the system does not "
                "trust it, set ca_file in [sources.minio]"
            )
        if endpoint is None:
            if access or secret or bucket:
                self._to_do.append(f"{ENDPOINT[0]} is missing; no source was added")
            return
        if "://" not in endpoint:
            endpoint = f"{'https' if secure is None or _is_true(secure) else 'http'}://{endpoint}"
        table: dict[str, object] = {"plugin": "minio", "endpoint": endpoint.rstrip("/")}
        table |= {"region": region} if region else {}
        table |= {"buckets": [bucket]} if bucket else {}
        if access and secret:
            for key, variable in (("access_key", ACCESS_KEY[0]), ("secret_key", SECRET_KEY[0])):
                where = f"{SECRETS}/minio-{key.replace('_', '-')}"
                table[key] = f"file:{where}"
                self._to_do.append(f"put the value of {variable} into {where}, mode 0600")
        elif access or secret:
            missing = SECRET_KEY[0] if access else ACCESS_KEY[0]
            self._to_do.append(f"{missing} is missing; no credentials were imported")
        self._document["sources"] = {"minio": table}

    def _target(self) -> None:
        group, pool = self._take(GROUP), self._take(POOL)
        if group is None:
            self._to_do.append(f"{GROUP[0]} is missing; add a table [targets.NAME]")
            return
        table = {"plugin": "thin-lvm" if pool else "lvm", "volume_group": group}
        self._document["targets"] = {group: table | ({"pool": pool} if pool else {})}


def _is_true(value: str | None) -> bool:
    return (value or "").lower() in {"1", "true", "yes", "on", "t"}
