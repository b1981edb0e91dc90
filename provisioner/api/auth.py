"""Who is calling, and what the caller's role allows. Decisions are pure; the credentials come from the request."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from provisioner.contracts.errors import ForbiddenError, UnauthorizedError

if TYPE_CHECKING:
    from werkzeug.datastructures import Headers

    from provisioner.api.peer_tls import PeerCertificate
    from provisioner.api.tokens import TokenFile
    from provisioner.config import AuthSettings, Role

# Each role may do what the ones before it may.
_RANK: dict[str, int] = {"viewer": 0, "operator": 1, "admin": 2}


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller we know. ``via`` is ``certificate`` or ``token``."""

    name: str
    role: Role
    via: str


class Authenticator:
    """Knows callers by certificate first, by token second."""

    def __init__(self, settings: AuthSettings, tokens: TokenFile) -> None:
        self._settings = settings
        self._tokens = tokens

    def use(self, settings: AuthSettings) -> None:
        """Judge by these settings from the next request on. The token file stays the one it was made with."""
        self._settings = settings

    def identify(self, certificate: PeerCertificate | None, headers: Headers) -> Principal:
        """Raises UnauthorizedError where neither a known certificate nor a valid token came."""
        principal = self._by_certificate(certificate) or self._by_token(_presented_token(headers))
        if principal is None:
            raise UnauthorizedError("a client certificate or a valid API token in X-API-Token is needed")
        return principal

    def _by_certificate(self, certificate: PeerCertificate | None) -> Principal | None:
        if certificate is None:
            return None
        for name in certificate.names:
            if name in self._settings.certificate_roles:
                return Principal(name, self._settings.certificate_roles[name], "certificate")
        role = self._settings.default_certificate_role
        if role == "none":
            return None
        return Principal(certificate.names[0] if certificate.names else "unnamed", role, "certificate")

    def _by_token(self, token: str | None) -> Principal | None:
        record = self._tokens.authenticate(token, time.time()) if token else None
        return Principal(record.name, record.role, "token") if record else None


def _presented_token(headers: Headers) -> str | None:
    token = headers.get("X-API-Token")
    if token:
        return token
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" and value else None


def check_role(principal: Principal, needed: Role) -> None:
    """Raise ForbiddenError where the caller's role is below ``needed``."""
    if _RANK[principal.role] < _RANK[needed]:
        raise ForbiddenError(f"{principal.name} has the role {principal.role}; this needs {needed}")
