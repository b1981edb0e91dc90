"""Show targets and sources: their plugins, space and health. A target that hangs hides only what it would answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import structlog
import trio

from provisioner.cache import UPLOADS
from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.redaction import redact
from provisioner.observe.probes import NoAnswerError, Probe
from provisioner.observe.source_health import SourceHealth

if TYPE_CHECKING:
    from provisioner.api.services import Services
    from provisioner.contracts import Capacity

T = TypeVar("T")
log = structlog.get_logger(__name__)

# Seconds that an answer of a target is reused: its check may write to the disk.
_FRESH = 3.0


class BackEndListing:
    """The targets and sources of the configuration. At most one check of each target runs at a time."""

    def __init__(self, services: Services) -> None:
        self._services = services
        targets = services.back_ends.targets
        self._checks: dict[str, Probe[None]] = {
            name: Probe(services.probes, target.check) for name, target in targets.items()
        }
        self._capacities: dict[str, Probe[Capacity | None]] = {
            name: Probe(services.probes, target.capacity) for name, target in targets.items()
        }

    async def targets(self) -> list[dict[str, Any]]:
        """Return every target, in the order of the configuration."""
        bodies: dict[str, dict[str, Any]] = {name: {} for name in self._checks}
        async with trio.open_nursery() as nursery:
            for name in bodies:
                nursery.start_soon(self._ask, name, bodies)
        return list(bodies.values())

    async def _ask(self, name: str, bodies: dict[str, dict[str, Any]]) -> None:
        _, reason = await _answer(name, self._checks[name])
        capacity, late = await _answer(name, self._capacities[name])
        reason = reason or late
        body: dict[str, Any] = {
            "name": name,
            "plugin": self._services.config.targets.get(name, {}).get("plugin", ""),
            "default": name == self._services.back_ends.default_target,
            "healthy": reason is None,
        }
        if reason is not None:
            body["reason"] = reason
        if capacity is not None:
            body |= {"size_bytes": capacity.total_bytes, "free_bytes": capacity.free_bytes}
            body |= {"freeable_bytes": capacity.freeable_bytes} if capacity.freeable_bytes else {}
            fill = {"data_percent": capacity.data_percent, "metadata_percent": capacity.metadata_percent}
            thin_pool = {key: value for key, value in fill.items() if value is not None}
            body |= {"thin_pool": thin_pool} if thin_pool else {}
        bodies[name] = body

    def sources(self) -> list[dict[str, Any]]:
        """Return every source of the configuration, in its order. Asks no server: health is what jobs have met."""
        bodies = []
        for name, source in self._services.back_ends.sources.items():
            if name == UPLOADS:  # not configured
                continue
            reason = source.problem() if isinstance(source, SourceHealth) else None
            body = {
                "name": name,
                "plugin": self._services.config.sources.get(name, {}).get("plugin", ""),
                "urls": [redact(prefix) for prefix in source.prefixes()],
                "healthy": reason is None,
            }
            bodies.append(body if reason is None else {**body, "reason": reason})
        return bodies


async def _answer(name: str, probe: Probe[T]) -> tuple[T | None, str | None]:
    """Return the answer of a target, or the reason why there is none."""
    try:
        return await probe.answer(_FRESH), None
    except NoAnswerError as error:
        return None, error.message
    except ProvisionerError as error:
        return None, redact(error.message)
    except Exception as error:  # a bug in one back end must not hide the others
        log.warning("a target could not be checked", target=name, exc_info=error)
        return None, "the check failed; see the log"
