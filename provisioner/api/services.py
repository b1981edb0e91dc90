"""The parts of the daemon that routes use."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from provisioner.observe.probes import Probes

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.auth.audit_events import Auditor
    from provisioner.auth.authenticator import Authenticator
    from provisioner.auth.tokens import TokenFile
    from provisioner.back_ends import BackEnds
    from provisioner.cache import ImageCache
    from provisioner.config import Config
    from provisioner.images import ImageResolver
    from provisioner.jobs import JobStore, Supervisor
    from provisioner.jobs.notify import Notifier
    from provisioner.observe.metrics import Metrics


@dataclass(slots=True)
class Services:
    """The daemon's parts, passed to every route."""

    config: Config
    back_ends: BackEnds
    cache: ImageCache
    store: JobStore
    supervisor: Supervisor
    notifier: Notifier
    metrics: Metrics
    authenticator: Authenticator
    auditor: Auditor
    tokens: TokenFile
    images: ImageResolver
    # Warnings for /health and /readyz, such as a certificate that expires soon.
    warnings: Callable[[], list[str]] = list
    # Expiry of each certificate, in seconds since the epoch.
    expires: Callable[[], dict[str, float]] = dict
    probes: Probes = field(default_factory=Probes)
    started_at: float = field(default_factory=time.monotonic)
