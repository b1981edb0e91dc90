"""The Prometheus metrics: names, labels and help texts.

Dashboards and alerts depend on the names and labels, so keep them stable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.openmetrics import exposition as openmetrics

from provisioner import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX = "libvirt_volume_provisioner"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = openmetrics.CONTENT_TYPE_LATEST
_REQUEST_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
_JOB_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)

# A second series for each counter and histogram, which Prometheus ignores unless told otherwise.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The service's metrics, in a separate registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            f"{PREFIX}_requests", "API requests.", ["endpoint", "method", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            f"{PREFIX}_request_duration_seconds",
            "Time to answer a request.",
            ["endpoint", "method"],
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self.jobs = Counter(f"{PREFIX}_jobs", "Jobs by status.", ["status"], registry=registry)
        for status in ("started", "completed", "failed", "cancelled"):
            self.jobs.labels(status)
        self.job_seconds = Histogram(
            f"{PREFIX}_job_duration_seconds",
            "Time from a job's start to its end.",
            ["status"],
            buckets=_JOB_BUCKETS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            f"{PREFIX}_stage_duration_seconds",
            "Time spent in a stage of a completed job.",
            ["stage"],
            buckets=_JOB_BUCKETS,
            registry=registry,
        )
        self.auth_failures = Counter(
            f"{PREFIX}_authentication_failures",
            "Requests and handshakes rejected without a valid credential, by what was presented.",
            ["presented"],
            registry=registry,
        )
        for presented in ("nothing", "token", "certificate"):
            self.auth_failures.labels(presented)
        self.audit_lost = Counter(
            f"{PREFIX}_audit_lines_lost", "Audit lines that could not be written.", registry=registry
        )
        self.log_dropped = Counter(f"{PREFIX}_log_dropped", "Log lines dropped, by sink.", ["sink"], registry=registry)
        self.connections_refused = Counter(
            f"{PREFIX}_connections_refused",
            "Connections rejected, or closed to make room.",
            registry=registry,
        )
        self.event_readers = Gauge(f"{PREFIX}_event_readers", "Open event streams.", registry=registry)
        self.events_dropped = Counter(
            f"{PREFIX}_events_dropped",
            "Events that a slow reader missed: progress, or changes, after which its stream is ended.",
            ["kind"],
            registry=registry,
        )
        for kind in ("progress", "change"):
            self.events_dropped.labels(kind)
        self.expiry = Gauge(
            f"{PREFIX}_certificate_expiry_timestamp_seconds",
            "Expiry of the server certificate, the client CA or its revocation list.",
            ["certificate"],
            registry=registry,
        )
        self.active_jobs = Gauge(f"{PREFIX}_active_jobs", "Jobs pending or running.", registry=registry)
        self.queue_depth = Gauge(f"{PREFIX}_queue_depth", "Jobs waiting for a worker.", registry=registry)
        self.downloaded = Counter(f"{PREFIX}_downloaded_bytes", "Image bytes received.", registry=registry)
        self.written = Counter(f"{PREFIX}_written_bytes", "Image bytes converted onto volumes.", registry=registry)
        self.volumes = Counter(
            f"{PREFIX}_volumes_provisioned", "Volumes provisioned, by copy or by clone.", ["by"], registry=registry
        )
        self.cache_lookups = Counter(
            f"{PREFIX}_cache_lookups", "Cache lookups by jobs, by result.", ["result"], registry=registry
        )
        for result in ("hit", "miss"):
            self.cache_lookups.labels(result)
        self.cache_evictions = Counter(
            f"{PREFIX}_cache_evictions", "Images evicted to make room for others.", registry=registry
        )
        self.cache_bytes = Gauge(f"{PREFIX}_cache_size_bytes", "Bytes of cached images.", registry=registry)
        self.cache_images = Gauge(f"{PREFIX}_cache_images", "Number of cached images.", registry=registry)
        self.target_free = Gauge(
            f"{PREFIX}_target_free_bytes", "Free space of a block target.", ["target"], registry=registry
        )
        self.target_freeable = Gauge(
            f"{PREFIX}_target_freeable_bytes", "Space of kept volumes on a block target that jobs may remove.",
            ["target"], registry=registry,
        )  # fmt: skip
        self.target_size = Gauge(
            f"{PREFIX}_target_size_bytes", "Size of a block target.", ["target"], registry=registry
        )
        self.pool_data = Gauge(
            f"{PREFIX}_thin_pool_data_percent", "Used data space of a thin pool.", ["target"], registry=registry
        )
        self.pool_metadata = Gauge(
            f"{PREFIX}_thin_pool_metadata_percent", "Used metadata space of a thin pool.", ["target"], registry=registry
        )
        self.build = Gauge(
            f"{PREFIX}_build_info", "Always 1; the version is the label.", ["version"], registry=registry
        )
        self.build.labels(__version__).set(1)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def job_ended(
        self,
        status: str,
        seconds: float,
        *,
        written: int = 0,
        cache_hit: bool | None = None,
        provisioned_by: str | None = None,
        stages: Mapping[str, float] | None = None,
    ) -> None:
        """Count a job that ended ``seconds`` after a worker started it and converted ``written`` bytes."""
        self.written.inc(written)
        self.job_seconds.labels(status).observe(seconds)
        self.jobs.labels(status).inc()
        if cache_hit is not None:
            self.cache_lookups.labels("hit" if cache_hit else "miss").inc()
        if provisioned_by is not None:
            self.volumes.labels(provisioned_by).inc()
        for stage, spent in (stages or {}).items():
            self.stage_seconds.labels(stage).observe(spent)

    def render(self, content_type: str = CONTENT_TYPE) -> bytes:
        """Return all metrics in the Prometheus text format, or in OpenMetrics."""
        return (openmetrics.generate_latest if content_type == OPENMETRICS_TYPE else generate_latest)(self.registry)


def negotiate(accept: Iterable[tuple[str, float]]) -> str:
    """Return the content type for an Accept header's types and qualities: OpenMetrics only if it is preferred."""
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for name, quality in accept:
        kind = name.partition(";")[0].strip().lower()
        best[kind] = max(best.get(kind, 0.0), quality)
    wanted = best["application/openmetrics-text"]
    return OPENMETRICS_TYPE if wanted > 0 and wanted >= best["text/plain"] else CONTENT_TYPE
