"""What the TLS files say of themselves: when they end, and which client certificates are taken back.

Read beside the TLS context, from the same files. Knows when to warn; who is warned is others'.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from provisioner.api import certificates
from provisioner.contracts.errors import ConfigError
from provisioner.contracts.small_file import read_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from provisioner.api.certificates import RevocationList
    from provisioner.config import ServerSettings

T = TypeVar("T")

_WORDS = {
    "server": "the server's certificate",
    "client_ca": "the authority of client certificates",
    "client_crl": "the revocation list of client certificates",
}


@dataclass(frozen=True, slots=True)
class Papers:
    """``ends``: which paper ends when, in seconds since the epoch; of several in a file the first to end counts.

    ``authorities``: the certificates in the file of those that sign clients', as encoded.
    """

    ends: dict[str, float]
    lists: tuple[RevocationList, ...] = ()
    authorities: frozenset[bytes] = frozenset()

    def warnings(self, now: float, before: float) -> list[str]:
        """A sentence for each paper that has ended, or ends within ``before`` seconds."""
        return [_warning(paper, end, now) for paper, end in self.ends.items() if end - now <= before]


NO_PAPERS = Papers({})


def read_papers(server: ServerSettings) -> Papers:
    """The papers of the TLS files there are. Raises ConfigError."""
    ends: dict[str, float] = {}
    authorities: frozenset[bytes] = frozenset()
    for paper, file in (("server", server.tls_certificate), ("client_ca", server.client_ca)):
        if file is not None:
            found = _parsed(file, certificates.certificates)
            ends |= _first_end(paper, [one.not_after for one in found])
            if paper == "client_ca":
                authorities = frozenset(one.data for one in found)
    if server.client_crl is None:
        return Papers(ends, authorities=authorities)
    lists = _parsed(server.client_crl, certificates.revocation_lists)
    ends |= _first_end("client_crl", [one.next_update for one in lists if one.next_update is not None])
    return Papers(ends, tuple(lists), authorities)


def _parsed(file: str, parse: Callable[[bytes], list[T]]) -> list[T]:
    try:
        found = parse(read_small(Path(file)))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error
    if not found:
        raise ConfigError(f"{file}: nothing of the kind is in it")
    return found


def _first_end(paper: str, ends: Iterable[float]) -> dict[str, float]:
    first = min(ends, default=None)
    return {} if first is None else {paper: first}


def _warning(paper: str, end: float, now: float) -> str:
    day = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d")
    if end <= now:
        return f"{_WORDS[paper]} has ended on {day}"
    days = int((end - now) // 86400)
    return f"{_WORDS[paper]} ends on {day}, in {days} day{'' if days == 1 else 's'}"
