"""Events for the audit log: requests, refused handshakes, ended jobs. Limits the log lines for failed authentications.

Failed authentications are counted per address. Above the limit the address gets 429 and no further lines, so that
failures cannot fill the disk.
"""

from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING

from provisioner.auth.throttle import FailureCounter
from provisioner.observe.audit import AuditRecord, is_audited

if TYPE_CHECKING:
    from provisioner.auth.authenticator import Principal
    from provisioner.jobs import Job
    from provisioner.observe.audit import AuditLog
    from provisioner.observe.metrics import Metrics

# Maximum characters of a field that the caller controls.
_LONGEST = 255
# The address of connections over a unix socket.
LOCAL = "local"


class Auditor:
    """The API's interface to the audit log."""

    def __init__(self, log: AuditLog, metrics: Metrics, max_failures: int) -> None:
        self._log = log
        self._metrics = metrics
        self._failures = FailureCounter(max_failures)

    def failed(self, address: str, presented: str) -> tuple[float | None, bool]:
        """Count a failed authentication; return what ``FailureCounter.failed`` returns."""
        self._metrics.auth_failures.labels(presented).inc()
        return self._failures.failed(group_of(address), time.monotonic())

    def warnings(self) -> list[str]:
        """Return a sentence if the audit log cannot be written at present."""
        return self._log.warnings()

    def connection_refused(self) -> None:
        """Count a connection that was refused or closed because of a limit."""
        self._metrics.connections_refused.inc()

    def handshake_refused(self, address: str, reason: str, *, written: bool = True) -> None:
        """Count a refused client certificate, and record it if ``written``."""
        _, is_news = self.failed(address, "certificate")
        if is_news and written:
            self._log.note(AuditRecord(event="handshake", status="refused", reason=reason, address=address))

    def request(
        self,
        method: str,
        endpoint: str,
        status: int | str,
        *,
        address: str,
        request_id: str,
        principal: Principal | None,
        reason: str | None = None,
        about: dict[str, str] | None = None,
    ) -> None:
        """Record an answered request. ``about``: what it concerned, as fields of AuditRecord."""
        if isinstance(status, int) and not is_audited(method, status):
            return
        self._log.note(
            AuditRecord(
                method=method,
                endpoint=endpoint,
                status=status,
                reason=reason,
                address=address,
                request_id=request_id,
                principal=principal.name if principal else None,
                role=principal.role if principal else None,
                via=principal.via if principal else None,
                **{name: value[:_LONGEST] for name, value in (about or {}).items()},
            )
        )

    def job_ended(self, job: Job) -> None:
        """Record the end of a job; the principal is the one that requested the job."""
        via, known, name = (job.principal or "").partition(":")
        if not known:  # the service's own jobs
            via, name = "", via
        self._log.note(
            AuditRecord(
                event="job",
                status=job.status.value,
                principal=name or None,
                via=via or None,
                job_id=job.job_id,
                target=job.spec.target,
                volume=job.spec.volume_name,
                source=job.spec.image_url.origin,
                request_id=job.request_id,
                replaced=job.replaced.owner.value if job.replaced else None,
                kept_as=job.replaced.kept_as if job.replaced else None,
            )
        )


def group_of(address: str) -> str:
    """Return the group an address is counted in: an IPv4 address itself, the /64 of an IPv6 address."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)
