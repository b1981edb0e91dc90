"""A complete plugin: an observer that appends a line of JSON to a file for each ended job.

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

ENDS = ("completed", "failed", "cancelled")


class LedgerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keys of the table. If one is wrong or misspelt, the service does not start and reports it."""

    file: str

    def __post_init__(self) -> None:
        if not self.file.startswith("/"):
            raise ValueError(f"file must be an absolute path, not {self.file!r}")


class Ledger(Observer):
    """Is notified of every change of every job and records the ends."""

    def __init__(self, settings: LedgerSettings, _context: BackEndContext) -> None:
        self._path = Path(settings.file)

    async def job_changed(self, event: JobEvent) -> None:
        if event.status in ENDS:
            line = msgspec.json.encode(dataclasses.asdict(event)) + b"\n"
            # Writing to a file blocks, so it must not run on trio's loop.
            await trio.to_thread.run_sync(self._append, line)

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(line)


@hookimpl
def lvp_observers() -> Sequence[BackEnd[Observer]]:
    """The observer ``ledger``."""
    return [BackEnd("ledger", Ledger, LedgerSettings)]
