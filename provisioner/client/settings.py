"""The client's settings: server address and credentials, given, from the environment or from ``~/.config/lvp.toml``.

What is given overrides the environment, which overrides the file. Opens no connection.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from provisioner.client.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

DEFAULT_URL = "http://127.0.0.1:8080"
# Key in the file (and, with dashes, the flag) -> environment variable.
ENVIRONMENT = {
    "url": "LVP_URL",
    "token": "LVP_TOKEN",
    "token_file": "LVP_TOKEN_FILE",
    "ca": "LVP_CA",
    "cert": "LVP_CERT",
    "key": "LVP_KEY",
}
# Tables of the file: the named hosts and groups of the command line.
TABLES = ("hosts", "groups")


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """A server's base url without a trailing slash, and the credentials for it."""

    url: str
    token: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @property
    def loopback(self) -> bool:
        """Whether the server's name is one of this machine."""
        return _is_loopback(self.url)

    @property
    def exposes_token(self) -> bool:
        """Whether the token would be sent unencrypted to another machine."""
        return self.token is not None and self.url.startswith("http://") and not self.loopback


def resolve(
    given: Mapping[str, str | None], environ: Mapping[str, str], file: Path, own_token: Path | None = None
) -> ClientSettings:
    """Return the settings merged from those given, environment and file.

    ``own_token`` is the file with the token that a server on this machine left; it is used if there is no other
    credential. Raises SettingsError.
    """
    layers: list[Mapping[str, str]] = [
        {key: value for key, value in given.items() if value is not None},
        {key: environ[name] for key, name in ENVIRONMENT.items() if environ.get(name)},
        read_file(file),
    ]
    return merged(layers, own_token)


def merged(layers: list[Mapping[str, str]], own_token: Path | None = None) -> ClientSettings:
    """Return the settings merged from layers of keys, the first of which counts most; see ``resolve``.

    Raises SettingsError.
    """
    url = check_url(_layer(layers, "url").get("url", DEFAULT_URL))
    # A certificate and its key must come from the same place, and so must a token and its file.
    identity = _layer(layers, "cert", "key")
    cert, key = _path(identity, "cert"), _path(identity, "key")
    if key is not None and cert is None:
        raise _wrong("a client key needs its certificate; set cert too")
    token = _token(_layer(layers, "token", "token_file"))
    if token is None and cert is None and _is_loopback(url):
        token = _own_token(own_token) if own_token is not None else None
    return ClientSettings(url, token, _path(_layer(layers, "ca"), "ca"), cert, key)


def client_file(environ: Mapping[str, str]) -> Path:
    """Return the file of the client's settings."""
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "lvp.toml")


def read_file(file: Path) -> Mapping[str, str]:
    """Return the settings in ``file`` for one server, or none if it does not exist. Raises SettingsError."""
    return {key: value for key, value in read_document(file).items() if key in ENVIRONMENT}


def read_document(file: Path) -> Mapping[str, Any]:
    """Return everything in ``file``, whose TABLES the command line checks, or nothing if it does not exist.

    Raises SettingsError.
    """
    import tomllib

    try:
        document = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _wrong(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise _wrong(f"{file} is not valid TOML: {error}") from error
    for key, value in document.items():
        if key in TABLES:
            continue
        if key not in ENVIRONMENT:
            close = difflib.get_close_matches(key, [*ENVIRONMENT, *TABLES], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join([*ENVIRONMENT, *TABLES])}"
            raise _wrong(f"{file}: unknown key {key!r}; {hint}")
        if not isinstance(value, str) or not value:
            raise _wrong(f"{file}: {key} must be a non-empty string")
    return document


def check_url(url: str) -> str:
    """Return ``url`` as a base for API paths, or as ``unix:/path``. Raises SettingsError."""
    if url.startswith("unix:"):
        return _check_unix(url)
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or _bad_port(parts):
        raise _wrong(f"server address {url!r} must look like https://HOST:8080 or unix:/PATH")
    return url.rstrip("/").removesuffix("/api/v1").rstrip("/")


def _check_unix(url: str) -> str:
    path = unix_path(url)
    if path is None or not path.name:
        raise _wrong(f"server address {url!r} must look like unix:/PATH, with an absolute path")
    return f"unix:{path}"


def unix_path(url: str) -> Path | None:
    """Return the path of a unix socket, or None if the address is another one."""
    name = url.removeprefix("unix:").removeprefix("//")
    return Path(name) if url.startswith("unix:") and name.startswith("/") else None


def _bad_port(parts: SplitResult) -> bool:
    try:
        return parts.port == 0
    except ValueError:
        return True


def _is_loopback(url: str) -> bool:
    if url.startswith("unix:"):
        return True
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _layer(layers: list[Mapping[str, str]], *keys: str) -> Mapping[str, str]:
    """Return the first layer that has any of ``keys``."""
    return next((layer for layer in layers if any(key in layer for key in keys)), {})


def _token(layer: Mapping[str, str]) -> str | None:
    if "token" in layer and "token_file" in layer:
        raise _wrong("both a token and a token file are set in the same place; remove one")
    token_file = _path(layer, "token_file")
    return _read_token(token_file) if token_file else layer.get("token")


def _read_token(file: Path) -> str:
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise _wrong(f"token file {file} cannot be read: {reason}") from error
    if not token.isascii() or len(token.split()) != 1:
        raise _wrong(f"token file {file} must contain one token and nothing else")
    return token


def _own_token(file: Path) -> str | None:
    """Return the token that ``lvp serve`` of the same user left, so that a trial needs no settings."""
    try:
        return _read_token(file) if file.exists() else None
    except (SettingsError, OSError):
        return None


def _path(layer: Mapping[str, str], key: str) -> Path | None:
    return Path(layer[key]).expanduser() if key in layer else None


def _wrong(message: str) -> SettingsError:
    return SettingsError(message)
