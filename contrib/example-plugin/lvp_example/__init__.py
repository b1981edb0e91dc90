"""A complete plugin: an observer that appends a line of JSON to a file for each finished job.

::

    [observers.ledger]
    plugin = "ledger"
    file = "/var/lib/libvirt-volume-provisioner/ledger.jsonl"
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from provisioner.contracts import BackEnd, Observer, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provisioner.contracts import BackEndContext, JobEvent

FINISHED = ("completed", "failed", "cancelled")


class LedgerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of the table. If one is invalid or misspelt, the service does not start and reports the error."""

    file: str

    def __post_init__(self) -> None:
        if not self.file.startswith("/"):
            raise ValueError(f"file must be an absolute path, not {self.file!r}")


class Ledger(Observer):
    """An observer that records finished jobs."""

    def __init__(self, settings: LedgerSettings, _context: BackEndContext) -> None:
        self._path = Path(settings.file)

    async def job_changed(self, event: JobEvent) -> None:
        if event.status in FINISHED:
            line = msgspec.json.encode(dataclasses.asdict(event)) + b"\n"
            # File access blocks, so it must not run on trio's event loop.
            await trio.to_thread.run_sync(self._append, line)

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(line)


@hookimpl
def lvp_observers() -> Sequence[BackEnd[Observer]]:
    """Return the observer ``ledger``."""
    return [BackEnd("ledger", Ledger, LedgerSettings)]
