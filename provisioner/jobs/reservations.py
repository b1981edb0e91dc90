"""Reserved volume names. A volume has one holder at a time, a job or a removal. The only record of them.

A name is taken in one step, without an await, before anything is stored or looked up, and released when the holder's
end is on disk. Every change of a volume needs its reservation, so no two can overlap.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from provisioner.contracts.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Reservation:
    """A held volume name. Only ``Reservations`` creates it."""

    def __init__(self, names: Reservations, target: str, volume_name: str, holder: Callable[[], str]) -> None:
        self._names = names
        self.target = target
        self.volume_name = volume_name
        self.holder = holder

    def release(self) -> None:
        """Release the name. Safe to call more than once."""
        self._names.forget(self)


class Reservations:
    """The names held at present."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Reservation] = {}

    def check(self, target: str, volume_name: str) -> None:
        """Raise ConflictError if the name is held. Takes nothing."""
        held = self._held.get((target, volume_name))
        if held is not None:
            raise ConflictError(held.holder())

    def reserve(self, target: str, volume_name: str, holder: Callable[[], str]) -> Reservation:
        """Take the name. ``holder`` returns the message for requests refused meanwhile. Raises ConflictError."""
        self.check(target, volume_name)
        made = self._held[target, volume_name] = Reservation(self, target, volume_name, holder)
        return made

    @contextmanager
    def holding(self, target: str, volume_name: str, holder: str) -> Iterator[None]:
        """Hold the name during the block. Raises ConflictError."""
        reservation = self.reserve(target, volume_name, lambda: holder)
        try:
            yield
        finally:
            reservation.release()

    def forget(self, reservation: Reservation) -> None:
        """See ``Reservation.release``."""
        if self._held.get((reservation.target, reservation.volume_name)) is reservation:
            del self._held[reservation.target, reservation.volume_name]

    def __len__(self) -> int:
        return len(self._held)
