"""Health, readiness and metrics: open to everybody, and cheap enough to be asked all the time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
import trio
from quart import Blueprint, Response

from provisioner import __version__
from provisioner.api import schemas
from provisioner.api.routes import answer
from provisioner.contracts.errors import ProvisionerError
from provisioner.observe.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from provisioner.api.services import Services
    from provisioner.contracts import BlockTarget

log = structlog.get_logger(__name__)

# A target that does not answer a question for its free space in this time is not ready.
_PATIENCE = 5.0


def make_blueprint(services: Services) -> Blueprint:
    """``/health`` and its kin, ``/readyz``, ``/metrics``."""
    service = Blueprint("service", __name__)

    async def health() -> Response:
        degraded = services.supervisor.active_count > services.config.server.degraded_above
        body: dict[str, object] = {
            "status": "degraded" if degraded else "healthy",
            "timestamp": schemas.timestamp(time.time()),
            "version": __version__,
            "uptime": schemas.uptime(time.monotonic() - services.started_at),
        }
        warnings = services.warnings()
        return answer({**body, "warnings": warnings} if warnings else body)

    for path in ("/health", "/healthz", "/livez"):
        service.add_url_rule(path, path[1:], health, methods=["GET"], provide_automatic_options=False)

    @service.get("/readyz", provide_automatic_options=False)
    async def readyz() -> Response:
        reasons = await _reasons(services)
        if not reasons:
            return answer({"status": "ready"})
        message = f"not ready: {'; '.join(reasons)}"
        return answer({"error": "service unavailable", "message": message, "code": 503, "reasons": reasons}, 503)

    @service.get("/metrics", provide_automatic_options=False)
    async def metrics() -> Response:
        await _measure(services)
        text = await trio.to_thread.run_sync(services.metrics.render)
        return Response(text, 200, content_type=CONTENT_TYPE)

    return service


async def _reasons(services: Services) -> list[str]:
    """Why the service cannot work now; empty when it can."""
    supervisor = services.supervisor
    found: list[str | None] = ["the service is shutting down" if supervisor.draining else None, supervisor.unstored()]

    async def ask(question: Callable[[], Awaitable[str | None]]) -> None:
        found.append(await question())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, services.store.check)
        nursery.start_soon(ask, services.cache.check)
        for target in services.back_ends.targets.values():
            nursery.start_soon(ask, lambda target=target: _target_reason(target))
    return sorted(reason for reason in found if reason is not None)


async def _target_reason(target: BlockTarget) -> str | None:
    with trio.move_on_after(_PATIENCE):
        try:
            await target.capacity()
        except ProvisionerError as error:
            return f"target {target.name!r}: {error.message}"
        except Exception as error:  # the boundary: one back end's bug is a reason, not a broken answer
            log.warning("a target could not be asked", target=target.name, exc_info=error)
            return f"target {target.name!r}: it failed ({type(error).__name__}); the log has more"
        return None
    return f"target {target.name!r}: no answer within {_PATIENCE:g} s"


async def _measure(services: Services) -> None:
    """Bring the gauges up to date that nobody else keeps."""
    metrics, cache = services.metrics, services.cache
    metrics.cache_bytes.set(cache.total_bytes)
    metrics.cache_images.set(len(cache.entries()))
    for paper, end in services.ends().items():
        metrics.expiry.labels(paper).set(end)
    with trio.move_on_after(_PATIENCE):
        for target in services.back_ends.targets.values():
            await _measure_target(services, target)


async def _measure_target(services: Services, target: BlockTarget) -> None:
    metrics = services.metrics
    try:
        capacity = await target.capacity()
    except Exception:  # noqa: BLE001 - readiness tells of it; the other metrics are wanted all the same
        return
    metrics.target_size.labels(target.name).set(capacity.total_bytes)
    metrics.target_free.labels(target.name).set(capacity.free_bytes)
    if capacity.data_percent is not None:
        metrics.pool_data.labels(target.name).set(capacity.data_percent)
    if capacity.metadata_percent is not None:
        metrics.pool_metadata.labels(target.name).set(capacity.metadata_percent)
