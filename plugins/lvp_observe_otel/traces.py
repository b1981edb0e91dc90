"""Jobs as spans of OpenTelemetry's SDK. The only module that loads it."""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from provisioner.contracts.errors import PluginError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

    from provisioner.contracts import JobEvent

_NAME = "libvirt-volume-provisioner"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ENTRY_POINTS = "opentelemetry_traces_exporter"


class Traces:
    """A tracer with an exporter of its own; the process's global one is left alone."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        resource = Resource.create({} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: _NAME})
        # Its atexit handler would wait for a collector that does not answer.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = exporter or exporter_of_environment()
        if exporter is not None:
            # A bounded queue and a thread: spans that do not fit are dropped.
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(_NAME)

    def add(self, event: JobEvent) -> None:
        """Add the trace of an ended job."""
        stages = event.stages or {}
        begins = [begin for begin, _ in stages.values()]
        root = self._tracer.start_span(
            "volume job" if event.volume_name else "image fetch",
            context=parent_of(event.traceparent),
            kind=SpanKind.SERVER,
            attributes=_attributes(event),
            start_time=_nanoseconds(event.accepted_at),
        )
        spans = {"queued": (event.accepted_at, min(begins, default=event.at)), **stages}
        for name, (begin, end) in spans.items():
            span = self._tracer.start_span(
                name, context=set_span_in_context(root, Context()), start_time=_nanoseconds(begin)
            )
            span.end(_nanoseconds(max(begin, end)))
        _set_status(root, event)
        root.end(_nanoseconds(max(event.at, event.accepted_at)))

    def close(self) -> None:
        """Export what is left. Blocking."""
        self._provider.shutdown()


def exporter_of_environment() -> SpanExporter | None:
    """Return the exporter that ``OTEL_TRACES_EXPORTER`` names, OTLP if it names none. Raises PluginError.

    OTLP goes over HTTP unless the environment chooses another protocol whose exporter is installed.
    """
    name = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name == "none":
        return None
    if name == "otlp":
        protocol = (
            os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "http/protobuf"
        )
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = next(iter(entry_points(group=_ENTRY_POINTS, name=name)), None)
    if found is None:
        raise PluginError(f"no exporter {name!r} for OpenTelemetry is installed; see OTEL_TRACES_EXPORTER")
    try:
        exporter: SpanExporter = found.load()()
    except (ImportError, ValueError, OSError) as error:
        raise PluginError(f"OpenTelemetry's exporter {name!r} cannot be used: {error}") from error
    return exporter


def parent_of(traceparent: str | None) -> Context:
    """Return the context of a header ``traceparent``; an empty one if it is missing or invalid, as W3C says."""
    found = _TRACEPARENT.fullmatch(traceparent or "")
    if found is None or found[0].startswith("ff") or (found[0].startswith("00") and found[4]):
        return Context()
    parent = SpanContext(
        int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=TraceFlags(int(found[3], 16))
    )
    return set_span_in_context(NonRecordingSpan(parent), Context()) if parent.is_valid else Context()


def _attributes(event: JobEvent) -> dict[str, str]:
    found = {
        "lvp.job.id": event.job_id,
        "lvp.job.status": event.status,
        "lvp.image.url": event.image_url.partition("?")[0],  # the query may be a signature
        "lvp.volume.name": event.volume_name,
        "lvp.correlation_id": event.correlation_id,
    }
    return {name: value for name, value in found.items() if value is not None}


def _set_status(span: Span, event: JobEvent) -> None:
    if event.status == "completed":
        span.set_status(Status(StatusCode.OK))
    else:
        span.set_status(Status(StatusCode.ERROR, event.error or event.status))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
