"""Identifies callers and checks their roles. Pure decisions on the credentials of a request."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from provisioner.config import Limits
from provisioner.contracts.errors import ForbiddenError, UnauthorizedError
from provisioner.tls.revocation import Revoked, revoked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from werkzeug.datastructures import Headers

    from provisioner.auth.tokens import TokenFile
    from provisioner.config import AuthSettings, Role
    from provisioner.tls.certificates import RevocationList
    from provisioner.tls.peer_certificate import PeerCertificate

# Each role includes the ones before it.
_RANK: dict[str, int] = {"viewer": 0, "operator": 1, "admin": 2}


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller. ``via`` is ``certificate`` or ``token``; ``expires_at`` is None if it never expires."""

    name: str
    role: Role
    via: str
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    expires_at: float | None = None

    @property
    def id(self) -> str:
        """A unique id: a token and a certificate of the same name differ."""
        return f"{self.via}:{self.name}"


class Authenticator:
    """Identifies callers by certificate first, by token second."""

    def __init__(self, settings: AuthSettings, tokens: TokenFile, lists: Iterable[RevocationList] = ()) -> None:
        self._settings = settings
        self._tokens = tokens
        self._lists = list(lists)
        self._revoked: Revoked = revoked(settings.revoked_certificates, self._lists)

    def use(self, settings: AuthSettings, lists: Iterable[RevocationList] | None = None) -> None:
        """Use these settings from the next request on. The token file does not change."""
        self._settings = settings
        self._lists = self._lists if lists is None else list(lists)
        self._revoked = revoked(settings.revoked_certificates, self._lists)

    def use_lists(self, lists: Iterable[RevocationList]) -> None:
        """Use these revocation lists from the next request on, also on open connections."""
        self.use(self._settings, lists)

    def identify(self, certificate: PeerCertificate | None, headers: Headers) -> Principal:
        """Return the caller. Raises UnauthorizedError if there is neither a known certificate nor a valid token.

        A certificate that the handshake would no longer accept is refused even with a valid token beside it.
        """
        now = time.time()
        if certificate is not None and self._revoked.is_outdated(certificate, now):
            raise UnauthorizedError("the revocation list of the client certificate's authority has expired")
        if certificate is not None and self._revoked.covers(certificate):
            raise UnauthorizedError("the client certificate is revoked")
        if certificate is not None and certificate.not_after <= now:
            raise UnauthorizedError("the client certificate has expired")
        token = _presented_token(headers)
        principal = self._by_certificate(certificate) or self._by_token(token, now)
        if principal is None:
            raise UnauthorizedError(self._refusal(certificate, token, now))
        return principal

    def _refusal(self, certificate: PeerCertificate | None, token: str | None, now: float) -> str:
        """Return why the credentials are not enough. Only the holder of an expired token learns its name."""
        if token and (expired := self._tokens.expired(token, now)):
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expired.expires_at))
            return f"the API token {expired.name} expired at {at}"
        if token:
            return "the API token is unknown: it is wrong or was revoked"
        if certificate is not None:
            return f"the client certificate {certificate.names[0] if certificate.names else ''} has no role here"
        return "a client certificate or a valid API token in X-API-Token is needed"

    def _by_certificate(self, certificate: PeerCertificate | None) -> Principal | None:
        if certificate is None:
            return None
        end = certificate.not_after if math.isfinite(certificate.not_after) else None
        for name in certificate.names:
            grant = self._settings.grant(name)
            if grant is not None:
                return Principal(name, grant.role, "certificate", self._with_defaults(grant), end)
        role = self._settings.default_certificate_role
        if role == "none":
            return None
        name = certificate.names[0] if certificate.names else "unnamed"
        return Principal(name, role, "certificate", self._with_defaults(Limits()), end)

    def _by_token(self, token: str | None, now: float) -> Principal | None:
        record = self._tokens.authenticate(token, now) if token else None
        if record is None:
            return None
        return Principal(record.name, record.role, "token", self._with_defaults(record.limits), record.expires_at)

    def _with_defaults(self, limits: Limits) -> Limits:
        if limits.max_jobs is not None or self._settings.max_jobs is None:
            return limits
        return msgspec.structs.replace(limits, max_jobs=self._settings.max_jobs)


def presented(certificate: PeerCertificate | None, headers: Headers) -> str:
    """Return the kind of credential that a caller presented: ``token``, ``certificate`` or ``nothing``."""
    if _presented_token(headers) is not None:
        return "token"
    return "nothing" if certificate is None else "certificate"


def has_token(header_names: Iterable[bytes]) -> bool:
    """Return whether the request has a header for a token. The names are in lower case."""
    return any(name in {b"x-api-token", b"authorization"} for name in header_names)


def _presented_token(headers: Headers) -> str | None:
    token = headers.get("X-API-Token")
    if token:
        return token
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" and value else None


def check_role(principal: Principal, needed: Role) -> None:
    """Raise ForbiddenError if the caller's role is below ``needed``."""
    if _RANK[principal.role] < _RANK[needed]:
        raise ForbiddenError(f"{principal.name} has the role {principal.role}; this needs {needed}")
