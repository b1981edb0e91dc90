"""``[auth]`` and ``[audit]``: who may do what, within which limits, and where it is written down."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from provisioner.contracts import SecretRef
from provisioner.contracts.errors import InvalidRequestError
from provisioner.contracts.urls import UrlPrefix

Role = Literal["viewer", "operator", "admin"]
_REVOKED = re.compile(r"(serial:(?:0x)?[0-9a-fA-F:]{1,80}|sha256:[0-9a-fA-F:]{64,95})")


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What a caller may touch, whatever its role. None: no limit of that kind."""

    # Patterns with * and ?, such as "ci-*".
    volumes: list[str] | None = None
    targets: list[str] | None = None
    # Names of configured sources, or url prefixes (they hold "://").
    sources: list[str] | None = None
    # Pending and running ones together.
    max_jobs: Annotated[int, Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        for kind in ("volumes", "targets", "sources"):
            # Read as "nothing" by one and as "anything" by another: so it is neither.
            if getattr(self, kind) == []:
                raise ValueError(f"{kind} must name at least one; leave it out for no limit")
        for source in self.sources or ():
            if "://" in source:
                try:
                    UrlPrefix.parse(source)
                except InvalidRequestError as error:
                    raise ValueError(f"sources: {source!r} is no url prefix: {error.message}") from error


class CertificateGrant(Limits, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """``[auth.certificates.NAME]``: role and limits of whoever holds a certificate of that name."""

    role: Role


class AuthSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[auth]``: who may do what."""

    # Default: tokens.json in the state directory.
    token_file: str | None = None
    # Default: a file beside it. In a credential the key is not on the disk in the clear.
    token_key: SecretRef | None = None
    # Certificate subject (common name or subject alternative name) -> role.
    certificate_roles: dict[str, Role] = msgspec.field(default_factory=dict)
    # The same with limits.
    certificates: dict[str, CertificateGrant] = msgspec.field(default_factory=dict)
    # A certificate the CA signed and neither of the two names. The CA vouches for operators.
    default_certificate_role: Role | Literal["none"] = "operator"
    # Certificates refused although they are sound: "serial:HEX" or "sha256:FINGERPRINT".
    revoked_certificates: list[str] = msgspec.field(default_factory=list)
    # Jobs that a caller may have pending or running, where its own entry does not say.
    max_jobs: Annotated[int, Meta(ge=1)] | None = None
    # Of one address in a minute, before it is answered 429. A person mistyping, or a script with an old token, stays
    # below; a guesser does not.
    max_failures: Annotated[int, Meta(ge=1)] = 20
    # A token with the role operator is left here (mode 0600) at the first start, for a client on the same host.
    client_token: str | None = None
    # Monitoring reads /metrics without credentials in the reference; false asks for a viewer.
    open_metrics: bool = True

    def __post_init__(self) -> None:
        twice = sorted(self.certificate_roles.keys() & self.certificates.keys())
        if twice:
            raise ValueError(f"{', '.join(twice)} stands in certificate_roles and in certificates; one is enough")
        for entry in self.revoked_certificates:
            if not _REVOKED.fullmatch(entry):
                raise ValueError(f'revoked_certificates: {entry!r} is neither "serial:HEX" nor "sha256:FINGERPRINT"')

    def grant(self, name: str) -> CertificateGrant | None:
        """Role and limits of that certificate name; None where neither table has it."""
        if name in self.certificates:
            return self.certificates[name]
        return CertificateGrant(role=self.certificate_roles[name]) if name in self.certificate_roles else None


class AuditSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[audit]``: who did what, one JSON line each."""

    # Default: with the log.
    file: str | None = None
