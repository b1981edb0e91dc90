"""A caller's limits besides its role: volume names, targets, sources. Pure; roles are in ``authenticator``.

Reading is not limited: every caller that may read sees all jobs, images and volumes of the host.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from provisioner.contracts.errors import ForbiddenError
from provisioner.pipeline.plan import covers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from provisioner.auth.authenticator import Principal
    from provisioner.contracts import ImageUrl
    from provisioner.jobs import Job


def check_volume(principal: Principal, target: str, volume_name: str) -> None:
    """Raise ForbiddenError if the caller's limits do not cover the volume on the target."""
    limits = principal.limits
    if limits.targets is not None and target not in limits.targets:
        raise _refused(principal, f"the target {target!r}", limits.targets)
    if limits.volumes is not None and not any(fnmatch.fnmatchcase(volume_name, pattern) for pattern in limits.volumes):
        raise _refused(principal, f"a volume {volume_name!r}", limits.volumes)


def check_source(principal: Principal, image_url: ImageUrl | None, source: str | None) -> None:
    """Raise ForbiddenError if the caller's limits do not cover the url. ``source``: the name of its source.

    ``image_url`` None: where the image came from is unknown, so no limit covers it.
    """
    allowed = principal.limits.sources
    if allowed is not None and (image_url is None or not covers(allowed, image_url, source)):
        origin = "an unknown source" if image_url is None else image_url.origin
        raise _refused(principal, f"images from {origin}", allowed)


def check_whole_cache(principal: Principal) -> None:
    """Raise ForbiddenError if the caller is limited to some sources: the request affects images of all."""
    if principal.limits.sources is not None:
        raise ForbiddenError(f"{principal.name} is limited to some sources; this affects all cached images")


def check_cancel(principal: Principal, job: Job) -> None:
    """Raise ForbiddenError if a limited caller tries to cancel another caller's job."""
    limits = principal.limits
    limited = any(kind is not None for kind in (limits.volumes, limits.targets, limits.sources))
    if limited and job.principal != principal.id:
        raise ForbiddenError(f"{principal.name} cancels its own jobs only; this one is another caller's")


def _refused(principal: Principal, what: str, allowed: Iterable[str]) -> ForbiddenError:
    return ForbiddenError(f"{principal.name} may not use {what}; allowed: {', '.join(allowed)}")
