"""Hands the trace of each ended job to the SDK, whose own thread exports it.

Nothing is kept between the acceptance of a job and its end, so a restart of the service loses no trace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts import Observer
from provisioner.contracts.errors import PluginError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from provisioner.contracts import BackEndContext, JobEvent, NoSettings

log = structlog.get_logger(__name__)

_ENDS = frozenset({"completed", "failed", "cancelled"})
# Seconds to export what is left when the service stops. A collector that does not answer must not delay that.
_LAST_EXPORT = 5.0


class OtelObserver(Observer):
    """Makes a trace of each job when it has ended. ``exporter`` overrides what the environment says."""

    def __init__(self, _settings: NoSettings, _context: BackEndContext, exporter: SpanExporter | None = None) -> None:
        try:
            from lvp_observe_otel.traces import Traces
        except ImportError as error:
            raise PluginError(
                f"the observer 'otel' needs OpenTelemetry's SDK ({error}); install libvirt-volume-provisioner[otel]"
            ) from error
        self._traces = Traces(exporter)

    async def job_changed(self, event: JobEvent) -> None:
        if event.status in _ENDS:
            self._traces.add(event)

    async def aclose(self) -> None:
        with trio.move_on_after(_LAST_EXPORT) as scope:
            # Abandoned if the collector hangs: the thread ends with the process.
            await trio.to_thread.run_sync(self._traces.close, abandon_on_cancel=True)
        if scope.cancelled_caught:
            log.warning("the last traces could not be exported in time")
