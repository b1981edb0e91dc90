"""Why the service cannot work now: the job store, the cache and each target are asked, each on its own.

Owns the questions and how long a verdict counts. One that hangs is a reason, and delays neither the others nor the
caller.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.write_probe import write_probe
from provisioner.observe.probes import NoAnswerError, Probe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from provisioner.api.services import Services
    from provisioner.contracts import BlockTarget

log = structlog.get_logger(__name__)

# Seconds a verdict counts: the disks are not written for each question.
FRESH = 3.0


class Readiness:
    """Asks the daemon's parts. A reason is a sentence; no reasons means ready."""

    def __init__(self, services: Services) -> None:
        self._services = services
        config = services.config
        questions: dict[str, Callable[[], Awaitable[str | None]]] = {
            "job store": _written("state directory", Path(config.state_directory), services.store.check),
            "cache": _written("cache directory", Path(config.cache_directory), services.cache.check),
        }
        self._capacities: dict[str, Probe[str | None]] = {}
        for target in services.back_ends.targets.values():
            name = f"target {target.name!r}"
            questions[name] = partial(_asked, name, target.check)
            self._capacities[name] = self._probe(partial(_asked, name, partial(self._measure, target)))
        self._probes = {name: self._probe(question) for name, question in questions.items()}

    async def reasons(self) -> list[str]:
        """Return why the service cannot work now; empty if it can."""
        supervisor = self._services.supervisor
        known = ["the service is shutting down" if supervisor.draining else None, supervisor.unstored()]
        found: dict[str, str] = {}
        await _all(self._probes, found)
        await _all(self._capacities, found)  # of two reasons for one target, the more general
        return sorted([*filter(None, known), *found.values()])

    async def measure(self) -> None:
        """Bring the targets' gauges up to date, as far as the targets answer."""
        await _all(self._capacities, {})

    def _probe(self, question: Callable[[], Awaitable[str | None]]) -> Probe[str | None]:
        return Probe(self._services.probes, question)

    async def _measure(self, target: BlockTarget) -> None:
        metrics, capacity = self._services.metrics, await target.capacity()
        metrics.target_size.labels(target.name).set(capacity.total_bytes)
        metrics.target_free.labels(target.name).set(capacity.free_bytes)
        if capacity.data_percent is not None:
            metrics.pool_data.labels(target.name).set(capacity.data_percent)
        if capacity.metadata_percent is not None:
            metrics.pool_metadata.labels(target.name).set(capacity.metadata_percent)


async def _all(probes: dict[str, Probe[str | None]], found: dict[str, str]) -> None:
    """Ask all at once; put the reasons there are into ``found``, by name."""

    async def ask(name: str, probe: Probe[str | None]) -> None:
        try:
            reason = await probe.answer(FRESH)
        except NoAnswerError as error:
            reason = f"{name}: {error.message}"
        if reason is not None:
            found[name] = reason

    async with trio.open_nursery() as nursery:
        for name, probe in probes.items():
            nursery.start_soon(ask, name, probe)


def _written(
    what: str, folder: Path, check: Callable[[], Awaitable[str | None]]
) -> Callable[[], Awaitable[str | None]]:
    """A question: can the folder be written, and if so, what does ``check`` find?"""
    limiter = trio.CapacityLimiter(1)  # of its own: busy threads elsewhere are no reason

    async def ask() -> str | None:
        try:
            await trio.to_thread.run_sync(write_probe, folder, abandon_on_cancel=True, limiter=limiter)
        except OSError as error:
            return f"{what} {folder} cannot be written: {error.strerror}"
        return await check()

    return partial(_asked, what, ask)


async def _asked(name: str, question: Callable[[], Awaitable[str | None]]) -> str | None:
    """What the question answers; its errors are reasons too."""
    try:
        return await question()
    except ProvisionerError as error:
        return f"{name}: {error.message}"
    except Exception as error:  # the boundary: one back end's bug is a reason, not a broken answer
        log.warning("a check failed", what=name, exc_info=error)
        return f"{name}: it failed ({type(error).__name__}); the log has more"
