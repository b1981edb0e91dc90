"""List what all targets have, concurrently. A target that hangs or fails hides only its own volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import structlog
import trio

from provisioner.contracts.errors import ProvisionerError, UnavailableError
from provisioner.observe.probes import NoAnswerError, Probe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from provisioner.api.services import Services

T = TypeVar("T")
log = structlog.get_logger(__name__)

# Seconds to list a target. LVM's reports wait for changes in progress.
_LIMIT = 10.0


class Listing(Generic[T]):
    """What the targets return to ``calls``, sorted by ``key``, with at most one call per target at a time."""

    def __init__(
        self,
        services: Services,
        calls: Mapping[str, Callable[[], Awaitable[Sequence[T]]]],
        key: Callable[[T], tuple[str | float, ...]],
    ) -> None:
        self._key = key
        self._probes: dict[str, Probe[Sequence[T]]] = {
            name: Probe(services.probes, call, patience=_LIMIT, limit=_LIMIT) for name, call in calls.items()
        }

    async def all(self) -> tuple[list[T], dict[str, str]]:
        """Return the volumes in order, and the reason for each target that could not be listed.

        Every listing starts after the call. Raises ProvisionerError if no target answers.
        """
        volumes: list[T] = []
        failed: dict[str, ProvisionerError] = {}

        async def ask(name: str, probe: Probe[Sequence[T]]) -> None:
            try:
                volumes.extend(await probe.answer())
            except NoAnswerError as error:
                failed[name] = UnavailableError(f"target {name!r}: {error.message}")
            except ProvisionerError as error:
                failed[name] = error
            except Exception as error:  # a bug in one back end must not hide the volumes of others
                log.warning("a target could not be listed", target=name, exc_info=error)
                failed[name] = UnavailableError(f"target {name!r} failed; see the log")

        async with trio.open_nursery() as nursery:
            for name, probe in self._probes.items():
                nursery.start_soon(ask, name, probe)
        if failed and len(failed) == len(self._probes):
            raise next(iter(failed.values()))
        return sorted(volumes, key=self._key), {name: error.message for name, error in sorted(failed.items())}
