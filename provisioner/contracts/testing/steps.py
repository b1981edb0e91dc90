"""The places where a fake waits, and how a test makes it hang or fail there. Owns no fake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from provisioner.contracts.types import MIB, Provenance, StageRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType


class Steps:
    """The steps one fake goes through.

    ``log`` has every step in its order, ``reached`` is set once the step named ``hang_at`` is waiting.
    ``hang_at``, ``fail_at`` and ``act_at`` may be changed while the fake is in use; what ``act_at`` has for a step is
    called there.
    """

    def __init__(
        self, names: Sequence[str], hang_at: str | None = None, fail_at: Mapping[str, Exception] | None = None
    ) -> None:
        self.hang_at = hang_at
        self.fail_at = dict(fail_at or {})
        self.act_at: dict[str, Callable[[], Awaitable[None]]] = {}
        self.reached = trio.Event()
        self.log: list[str] = []
        for name in [*([hang_at] if hang_at else []), *self.fail_at]:
            if name not in names:
                raise ValueError(f"no step {name!r}; there are {', '.join(names)}")

    async def at(self, step: str) -> None:
        """Be at ``step``: a checkpoint, a failure or a wait without end."""
        self.log.append(step)
        if step in self.fail_at:
            raise self.fail_at[step]
        if step in self.act_at:
            await self.act_at[step]()
        if step == self.hang_at:
            await self.hang()
        await trio.lowlevel.checkpoint()

    async def hang(self) -> None:
        """Wait for ever, or for a cancel."""
        self.reached.set()
        await trio.sleep_forever()


class raises:  # noqa: N801 - reads as a word, as pytest's does
    """Expect one of ``kinds``: ``with raises(NoSpaceError) as caught: ...``; the error is ``caught.value``."""

    def __init__(self, *kinds: type[Exception]) -> None:
        self._kinds = kinds
        self.value: Exception = LookupError("nothing was raised yet")

    def __enter__(self) -> raises:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        if error is None:
            raise AssertionError(f"{' or '.join(kind.__name__ for kind in self._kinds)} was not raised")
        if not isinstance(error, self._kinds):
            return False
        self.value = error
        return True


def a_provenance(job_id: str = "job-1", image_digest: str | None = None) -> Provenance:
    """A provenance for tests; its time is fixed."""
    return Provenance(job_id, "https://images.example.com/disk.qcow2", image_digest, 1_700_000_000.0)


def a_request(name: str = "web01", size_bytes: int = 8 * MIB, job_id: str = "job-1") -> StageRequest:
    """A request to stage a volume, for tests."""
    return StageRequest(name, size_bytes, a_provenance(job_id))
