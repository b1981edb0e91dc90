"""Readiness checks of the job store, the cache and each target; warnings about secrets and sources.

The checks run independently and their results are reused for a few seconds. A check that hangs makes the service not
ready, and delays neither the other checks nor the caller.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.config import check_secret
from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.write_probe import write_probe
from provisioner.observe.probes import NoAnswerError, Probe
from provisioner.observe.source_health import SourceHealth

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from provisioner.api.services import Services
    from provisioner.contracts import BlockTarget, SecretRef

log = structlog.get_logger(__name__)

# Seconds that a result is reused, so that not every request writes to the disks.
FRESH = 3.0
# The same for secrets, which change rarely.
SECRETS_FRESH = 30.0


class Readiness:
    """The readiness checks of the daemon's parts. Each reason is a sentence; without reasons the service is ready."""

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
        secrets = dict(services.back_ends.secrets)
        if config.auth.token_key is not None:
            secrets["auth.token_key"] = config.auth.token_key
        self._secrets = {f"the secret {key}": self._probe(_readable(key, ref)) for key, ref in secrets.items()}

    async def reasons(self) -> list[str]:
        """Return why the service is not ready; empty if it is."""
        supervisor = self._services.supervisor
        known = ["the service is shutting down" if supervisor.draining else None, supervisor.unstored()]
        found: dict[str, str] = {}
        await _all(self._probes, found)
        await _all(self._capacities, found)  # overwrites the target's reason from above
        return sorted([*filter(None, known), *found.values()])

    async def warnings(self) -> list[str]:
        """Return what will make jobs fail although the service is ready: secrets and sources. Shows no path or url."""
        found: dict[str, str] = {}
        await _all(self._secrets, found, SECRETS_FRESH)
        for name, source in self._services.back_ends.sources.items():
            if isinstance(source, SourceHealth) and (problem := source.problem()) is not None:
                found[f"source {name}"] = f"source {name!r}: {problem}"
        return sorted(found.values())

    async def measure(self) -> None:
        """Update the gauges of the targets that answer."""
        await _all(self._capacities, {})

    def _probe(self, question: Callable[[], Awaitable[str | None]]) -> Probe[str | None]:
        return Probe(self._services.probes, question)

    async def _measure(self, target: BlockTarget) -> None:
        metrics, capacity = self._services.metrics, await target.capacity()
        metrics.target_size.labels(target.name).set(capacity.total_bytes)
        metrics.target_free.labels(target.name).set(capacity.free_bytes)
        metrics.target_freeable.labels(target.name).set(capacity.freeable_bytes)
        if capacity.data_percent is not None:
            metrics.pool_data.labels(target.name).set(capacity.data_percent)
        if capacity.metadata_percent is not None:
            metrics.pool_metadata.labels(target.name).set(capacity.metadata_percent)


async def _all(probes: dict[str, Probe[str | None]], found: dict[str, str], age: float = FRESH) -> None:
    """Run all probes concurrently and put their reasons into ``found``, by name."""

    async def ask(name: str, probe: Probe[str | None]) -> None:
        try:
            reason = await probe.answer(age)
        except NoAnswerError as error:
            reason = f"{name}: {error.message}"
        if reason is not None:
            found[name] = reason

    async with trio.open_nursery() as nursery:
        for name, probe in probes.items():
            nursery.start_soon(ask, name, probe)


def _readable(key: str, reference: SecretRef) -> Callable[[], Awaitable[str | None]]:
    """Return a check that the secret can be read."""
    limiter = trio.CapacityLimiter(1)

    async def ask() -> str | None:
        finding = await trio.to_thread.run_sync(check_secret, reference, abandon_on_cancel=True, limiter=limiter)
        return None if finding.ok else f"the secret {key} cannot be read; run lvp doctor on the host"

    return partial(_asked, f"the secret {key}", ask)


def _written(
    what: str, folder: Path, check: Callable[[], Awaitable[str | None]]
) -> Callable[[], Awaitable[str | None]]:
    """Return a check that the folder can be written, followed by ``check``."""
    limiter = trio.CapacityLimiter(1)  # separate, so that busy threads elsewhere do not fail the check

    async def ask() -> str | None:
        try:
            await trio.to_thread.run_sync(write_probe, folder, abandon_on_cancel=True, limiter=limiter)
        except OSError as error:
            return f"{what} {folder} cannot be written: {error.strerror}"
        return await check()

    return partial(_asked, what, ask)


async def _asked(name: str, question: Callable[[], Awaitable[str | None]]) -> str | None:
    """Return the reason that the check reports; an error is a reason too."""
    try:
        return await question()
    except ProvisionerError as error:
        return f"{name}: {error.message}"
    except Exception as error:  # a bug in one back end is a reason, not a 500 response
        log.warning("a check failed", what=name, exc_info=error)
        return f"{name}: the check failed; see the log"
