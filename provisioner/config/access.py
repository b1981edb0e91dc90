"""Settings of ``[auth]`` and ``[audit]``: roles, limits and the audit log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from provisioner.contracts import AbsolutePath, SecretRef, refuse
from provisioner.contracts.errors import InvalidRequestError
from provisioner.contracts.urls import UrlPrefix

if TYPE_CHECKING:
    from collections.abc import Iterator

Role = Literal["viewer", "operator", "admin"]
_REVOKED = re.compile(r"(serial:(?:0x)?[0-9a-fA-F:]{1,80}|sha256:[0-9a-fA-F:]{64,95})")


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What a caller may use, in addition to its role. None means no limit of that kind."""

    # Patterns with * and ?, such as "ci-*".
    volumes: list[str] | None = None
    targets: list[str] | None = None
    # Names of configured sources, or URL prefixes (which contain "://").
    sources: list[str] | None = None
    # Pending and running jobs together.
    max_jobs: Annotated[int, Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        for kind in ("volumes", "targets", "sources"):
            # An empty list is ambiguous: it could mean "nothing" or "anything".
            if getattr(self, kind) == []:
                yield f"{kind} must name at least one; leave it out for no limit"
        for source in self.sources or ():
            if "://" in source:
                try:
                    UrlPrefix.parse(source)
                except InvalidRequestError as error:
                    yield f"sources: {source!r} is not a URL prefix: {error.message}"


class CertificateGrant(Limits, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """``[auth.certificates.NAME]``: role and limits for a certificate of that name."""

    role: Role


class AuthSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[auth]``: authentication and authorization."""

    # Default: tokens.json in the state directory.
    token_file: AbsolutePath | None = None
    # Default: a file next to the token file. In a systemd credential the key is not stored in plain text.
    token_key: SecretRef | None = None
    # Certificate subject (common name or subject alternative name) -> role.
    certificate_roles: dict[str, Role] = msgspec.field(default_factory=dict)
    # Certificate name -> role and limits.
    certificates: dict[str, CertificateGrant] = msgspec.field(default_factory=dict)
    # Role for a certificate that the CA signed and that neither of the two tables names.
    default_certificate_role: Role | Literal["none"] = "operator"
    # Certificates to reject although they are valid: "serial:HEX" or "sha256:FINGERPRINT".
    revoked_certificates: list[str] = msgspec.field(default_factory=list)
    # Jobs that a caller may have pending or running, unless its own entry sets a limit.
    max_jobs: Annotated[int, Meta(ge=1)] | None = None
    # How often an address may fail to authenticate within a minute; further failures get 429. Enough for a mistyping
    # user or a script with an old token, too few for an attacker who guesses.
    max_failures: Annotated[int, Meta(ge=1)] = 20
    # At the first start, write an operator token to this file (mode 0600) for a client on the same host.
    client_token: AbsolutePath | None = None
    # Serve /metrics without credentials. If false, it needs the role viewer.
    open_metrics: bool = True

    def __post_init__(self) -> None:
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        twice = sorted(self.certificate_roles.keys() & self.certificates.keys())
        if twice:
            yield f"{', '.join(twice)} is in certificate_roles and in certificates; remove it from one"
        for entry in self.revoked_certificates:
            if not _REVOKED.fullmatch(entry):
                yield f'revoked_certificates: {entry!r} is neither "serial:HEX" nor "sha256:FINGERPRINT"'

    def grant(self, name: str) -> CertificateGrant | None:
        """Return the role and limits for a certificate name; None if neither table has it."""
        if name in self.certificates:
            return self.certificates[name]
        return CertificateGrant(role=self.certificate_roles[name]) if name in self.certificate_roles else None


class AuditSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[audit]``: the audit log, one JSON line per event."""

    file: AbsolutePath | None = None
    # Also write the lines to the log. Default: only without a file and with a JSON log; in a text log they would bury
    # the lines for people.
    log: bool | None = None

    def goes_to_log(self, log_format: str) -> bool:
        """Return whether the lines go to a log of this format."""
        return self.log if self.log is not None else self.file is None and log_format == "json"
