"""OpenTelemetry: an observer that makes a trace of each job, with a span for each of its stages.

::

    [observers.traces]
    plugin = "otel"

It needs the extra ``otel``, and is configured by the environment variables of OpenTelemetry (``OTEL_...``). The SDK is
loaded only if there is such a table.
"""

from collections.abc import Sequence

from lvp_observe_otel.observer import OtelObserver
from provisioner.contracts import BackEnd, Observer, hookimpl

__all__ = ["OtelObserver", "lvp_observers"]


@hookimpl
def lvp_observers() -> Sequence[BackEnd[Observer]]:
    """Return the observer ``otel``."""
    return [BackEnd("otel", OtelObserver)]
