"""Convert an environment file with ``MINIO_*`` and ``LVM_*`` settings into a configuration.

Secrets are never copied: the configuration refers to files that the administrator fills.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tomli_w

from provisioner.contracts.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SECRETS = "/etc/libvirt-volume-provisioner/secrets"
# The known variables; synonyms are in order of preference.
ENDPOINT = ("MINIO_ENDPOINT", "MINIO_URL")
SECURE = ("MINIO_SECURE", "MINIO_USE_SSL")
ACCESS_KEY = ("MINIO_ACCESS_KEY", "MINIO_ACCESS_KEY_ID")
SECRET_KEY = ("MINIO_SECRET_KEY", "MINIO_SECRET_ACCESS_KEY")
BUCKET = ("MINIO_BUCKET",)
REGION = ("MINIO_REGION",)
GROUP = ("LVM_VOLUME_GROUP", "LVM_VG", "VOLUME_GROUP")
POOL = ("LVM_THIN_POOL",)
RETRIES = ("LVM_RETRY_ATTEMPTS", "MINIO_RETRY_ATTEMPTS")
CACHE = ("IMAGE_CACHE_DIR", "CACHE_DIR")
HOST = ("HOST", "API_HOST")
PORT = ("PORT", "API_PORT")
CERTIFICATE = ("TLS_CERT", "TLS_CERT_FILE", "SERVER_CERT_PATH")
KEY = ("TLS_KEY", "TLS_KEY_FILE", "SERVER_KEY_PATH")
CLIENT_CA = ("TLS_CA", "TLS_CA_FILE", "CLIENT_CA_CERT_PATH", "CLIENT_CA")
TOKENS = ("API_TOKENS_FILE", "API_TOKENS", "API_TOKEN")
DATABASE = ("DB_PATH", "DATABASE_PATH")
LEVEL = ("LOG_LEVEL",)
FORMAT = ("LOG_FORMAT",)
CONCURRENT = ("MAX_CONCURRENT_JOBS", "MAX_CONCURRENT")


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
        self._to_do += [f"{name} is unknown and was left out" for name in sorted(self._left)]
        return Imported(tomli_w.dumps(self._document), self._to_do)

    def _take(self, names: tuple[str, ...]) -> str | None:
        values = [self._left.pop(name) for name in names if name in self._left]
        return values[0] if values else None

    def _put(self, section: str, **values: object) -> None:
        given = {key: value for key, value in values.items() if value is not None}
        if given:
            self._document.setdefault(section, {}).update(given)

    def _number(self, names: tuple[str, ...]) -> int | None:
        value = self._take(names)
        if value is not None and not value.isdigit():
            self._to_do.append(f"{names[0]}={value} is not a number and was left out")
            return None
        return None if value is None else int(value)

    def _server(self) -> None:
        host, port = self._take(HOST), self._number(PORT)
        certificate, key, authority = self._take(CERTIFICATE), self._take(KEY), self._take(CLIENT_CA)
        if host is not None or port is not None:
            host = host or "127.0.0.1"
            self._put("server", bind=[f"{f'[{host}]' if ':' in host else host}:{port or 8080}"])
        if certificate and key:
            self._put("server", tls_certificate=certificate, tls_key=key, client_ca=authority)
        elif certificate or key or authority:
            self._to_do.append("a certificate needs a key, and a client CA needs both; TLS was left out")

    def _tokens(self) -> None:
        if self._take(TOKENS) is not None:
            self._to_do.append("tokens are not copied; create new ones with: lvp token create NAME")

    def _jobs(self) -> None:
        self._put("jobs", max_concurrent=self._number(CONCURRENT))
        if self._take(DATABASE) is not None:
            self._to_do.append("the job history is not imported; a new one starts in state_directory")

    def _cache(self) -> None:
        self._put("cache", directory=self._take(CACHE), download_attempts=self._number(RETRIES))

    def _log(self) -> None:
        level, form = self._take(LEVEL), self._take(FORMAT)
        names = {"warn": "warning", "fatal": "error", "trace": "debug"}
        if level is not None:
            self._put("log", level=names.get(level.lower(), level.lower()))
        if form is not None:
            self._put("log", format="json" if form.lower() == "json" else "text")

    def _source(self) -> None:
        endpoint, secure = self._take(ENDPOINT), self._take(SECURE)
        access, secret = self._take(ACCESS_KEY), self._take(SECRET_KEY)
        bucket, region = self._take(BUCKET), self._take(REGION)
        if endpoint is None:
            if access or secret or bucket:
                self._to_do.append(f"{ENDPOINT[0]} is missing; no source was added")
            return
        if "://" not in endpoint:
            scheme = "https" if (secure or "").lower() in {"1", "true", "yes", "on"} else "http"
            endpoint = f"{scheme}://{endpoint}"
        table: dict[str, object] = {"plugin": "minio", "endpoint": endpoint.rstrip("/")}
        table |= {"region": region} if region else {}
        table |= {"buckets": [bucket]} if bucket else {}
        if access and secret:
            for key, variable in (("access_key", ACCESS_KEY[0]), ("secret_key", SECRET_KEY[0])):
                where = f"{SECRETS}/minio-{key.replace('_', '-')}"
                table[key] = f"file:{where}"
                self._to_do.append(f"put the value of {variable} into {where}, mode 0600")
        self._document["sources"] = {"minio": table}

    def _target(self) -> None:
        group, pool = self._take(GROUP), self._take(POOL)
        if group is None:
            self._to_do.append(f"{GROUP[0]} is missing; add a table [targets.NAME]")
            return
        table = {"plugin": "thin-lvm" if pool else "lvm", "volume_group": group}
        self._document["targets"] = {group: table | ({"pool": pool} if pool else {})}
