"""The steps of a fake, at which a test can make it hang or fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from provisioner.contracts.types import MIB, Provenance, StageRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType


class Steps:
    """The steps that a fake goes through.

    ``log`` lists the steps in order; ``reached`` is set when the fake hangs at the step ``hang_at``. ``act_at`` maps a
    step to a function that is called there. ``hang_at``, ``fail_at`` and ``act_at`` may be changed while the fake is in
    use.
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
                raise ValueError(f"unknown step {name!r}; the steps are {', '.join(names)}")

    async def at(self, step: str) -> None:
        """Enter ``step``: fail, call ``act_at``, hang, or just run a checkpoint."""
        self.log.append(step)
        if step in self.fail_at:
            raise self.fail_at[step]
        if step in self.act_at:
            await self.act_at[step]()
        if step == self.hang_at:
            await self.hang()
        await trio.lowlevel.checkpoint()

    async def hang(self) -> None:
        """Wait for a cancel."""
        self.reached.set()
        await trio.sleep_forever()


class raises:  # noqa: N801 - named like pytest's
    """Expect one of ``kinds``: ``with raises(NoSpaceError) as caught: ...``; the error is ``caught.value``."""

    def __init__(self, *kinds: type[Exception]) -> None:
        self._kinds = kinds
        self.value: Exception = LookupError("no exception was raised yet")

    def __enter__(self) -> raises:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        if error is None:
            raise AssertionError(f"{' or '.join(kind.__name__ for kind in self._kinds)} was not raised")
        if not isinstance(error, self._kinds):
            return False
        self.value = error
        return True


SIGNED_BY = f"openpgp:{'9D2E' * 10}"


def a_provenance(job_id: str = "job-1", image_digest: str | None = None) -> Provenance:
    """Return a provenance for tests, with a fixed time."""
    return Provenance(job_id, "https://images.example.com/disk.qcow2", image_digest, 1_700_000_000.0, SIGNED_BY)


def a_request(name: str = "web01", size_bytes: int = 8 * MIB, job_id: str = "job-1") -> StageRequest:
    """Return a request to stage a volume, for tests."""
    return StageRequest(name, size_bytes, a_provenance(job_id))
