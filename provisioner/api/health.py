"""Health, readiness and metrics endpoints. They need no credential by default and are cheap to poll."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import trio
from quart import Blueprint, Response, request

from provisioner import __version__
from provisioner.api import responses
from provisioner.api.readiness import Readiness
from provisioner.api.routes import answer
from provisioner.contracts.reasons import NOT_READY
from provisioner.observe import logs
from provisioner.observe.metrics import negotiate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from provisioner.api.services import Services

# Seconds that rendered metrics are reused, so that frequent requests cost one rendering a second.
PAGE_KEPT = 1.0


def make_blueprint(services: Services) -> Blueprint:
    """Return the blueprint of ``/health``, ``/healthz``, ``/livez``, ``/readyz`` and ``/metrics``."""
    service = Blueprint("service", __name__)
    readiness = Readiness(services)
    page = _Page(services, readiness)

    def _with_warnings(body: dict[str, object], more: Iterable[str] = ()) -> dict[str, object]:
        warnings = [*services.warnings(), *services.auditor.warnings(), *logs.warnings(), *more]
        return {**body, "warnings": warnings} if warnings else body

    async def health() -> Response:
        degraded = services.supervisor.active_count > services.config.server.degraded_above
        body: dict[str, object] = {
            "status": "degraded" if degraded else "healthy",
            "timestamp": responses.timestamp(time.time()),
            "version": __version__,
            "uptime": responses.uptime(time.monotonic() - services.started_at),
        }
        return answer(_with_warnings(body))

    for path in ("/health", "/healthz", "/livez"):
        service.add_url_rule(path, path[1:], health, methods=["GET"], provide_automatic_options=False)

    @service.get("/readyz", provide_automatic_options=False)
    async def readyz() -> Response:
        reasons = await readiness.reasons()
        if not reasons:
            return answer(_with_warnings({"status": "ready"}, await readiness.warnings()))
        message = f"not ready: {'; '.join(reasons)}"
        body = {"error": "service unavailable", "message": message, "code": 503, "reason": NOT_READY}
        return answer({**body, "reasons": reasons}, 503)

    @service.get("/metrics", provide_automatic_options=False)
    async def metrics() -> Response:
        content_type = negotiate(request.accept_mimetypes)
        response = Response(await page.text(content_type), 200, content_type=content_type)
        response.headers["Vary"] = "Accept"
        return response

    return service


class _Page:
    """The metrics as text, rendered at most once a second and by one caller at a time."""

    def __init__(self, services: Services, readiness: Readiness) -> None:
        self._services, self._readiness = services, readiness
        self._rendering = trio.Lock()
        self._thread = trio.CapacityLimiter(1)  # separate, so that busy threads elsewhere cannot delay it
        self._texts: dict[str, tuple[bytes, float]] = {}  # by content type

    async def text(self, content_type: str) -> bytes:
        """Return the text in that form, at most a second old."""
        async with self._rendering:
            text, at = self._texts.get(content_type, (b"", -math.inf))
            if trio.current_time() - at >= PAGE_KEPT:
                await self._measure()
                render = self._services.metrics.render
                text = await trio.to_thread.run_sync(render, content_type, limiter=self._thread)
                self._texts[content_type] = text, trio.current_time()
            return text

    async def _measure(self) -> None:
        """Update the gauges that are not updated elsewhere."""
        metrics, cache = self._services.metrics, self._services.cache
        metrics.cache_bytes.set(cache.total_bytes)
        metrics.cache_images.set(len(cache.entries()))
        for tls_file, end in self._services.expires().items():
            metrics.expiry.labels(tls_file).set(end)
        await self._readiness.measure()
