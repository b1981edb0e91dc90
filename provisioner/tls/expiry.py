"""Expiry dates of certificates and revocation lists, and the warnings about them.

Read together with the TLS context, from the same files. Callers decide where warnings go.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from provisioner.contracts.errors import ConfigError
from provisioner.contracts.small_file import read_small
from provisioner.tls import certificates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from provisioner.config import ServerSettings
    from provisioner.tls.certificates import RevocationList

T = TypeVar("T")

_NAMES = {
    "server": "the server's certificate",
    "client_ca": "the authority of client certificates",
    "client_crl": "the revocation list of client certificates",
}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Facts of the TLS files. ``expires``: the earliest expiry in each file, in seconds since the epoch.

    ``authorities``: the encoded certificates of the client CA file.
    """

    expires: dict[str, float]
    lists: tuple[RevocationList, ...] = ()
    authorities: frozenset[bytes] = frozenset()

    def warnings(self, now: float, before: float) -> list[str]:
        """Return a sentence for each file that has expired or expires within ``before`` seconds."""
        return [_warning(tls_file, end, now) for tls_file, end in self.expires.items() if end - now <= before]


NO_TLS_FILES = TlsFiles({})


def read_tls_files(server: ServerSettings) -> TlsFiles:
    """Return the facts of the configured TLS files. Raises ConfigError."""
    expires: dict[str, float] = {}
    authorities: frozenset[bytes] = frozenset()
    for tls_file, file in (("server", server.tls_certificate), ("client_ca", server.client_ca)):
        if file is not None:
            found = _parsed(file, certificates.certificates)
            expires |= _first_expiry(tls_file, [one.not_after for one in found])
            if tls_file == "client_ca":
                authorities = frozenset(one.data for one in found)
    if server.client_crl is None:
        return TlsFiles(expires, authorities=authorities)
    lists = _parsed(server.client_crl, certificates.revocation_lists)
    expires |= _first_expiry("client_crl", [one.next_update for one in lists if one.next_update is not None])
    return TlsFiles(expires, tuple(lists), authorities)


def _parsed(file: str, parse: Callable[[bytes], list[T]]) -> list[T]:
    try:
        found = parse(read_small(Path(file)))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error
    if not found:
        raise ConfigError(f"{file} contains no PEM block of the expected kind")
    return found


def _first_expiry(tls_file: str, expires: Iterable[float]) -> dict[str, float]:
    first = min(expires, default=None)
    return {} if first is None else {tls_file: first}


def _warning(tls_file: str, end: float, now: float) -> str:
    day = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d")
    if end <= now:
        return f"{_NAMES[tls_file]} expired on {day}"
    days = int((end - now) // 86400)
    return f"{_NAMES[tls_file]} expires on {day}, in {days} day{'' if days == 1 else 's'}"
