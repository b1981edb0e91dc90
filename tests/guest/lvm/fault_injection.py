"""Injects each kind of fault into each LVM call in turn. The tests decide what to check afterwards."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from provisioner.contracts.errors import ProvisionerError
from tests.guest.lvm import harness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from lvp_target_lvm.group import GroupTarget

# For each fault, what the tool does instead, as a shell script ($c and $@ are the command), and what the error must
# contain.
FAULTS = {
    "fails": ("echo '  Internal error: made up' >&2; exit 5", "made up"),
    "hangs": ("sleep 1000", "did not end within"),
    "claims to have done it": ("exit 0", ""),
    "does it and claims to have failed": (
        '/usr/sbin/lvm "$c" "$@"; echo "  Something went wrong." >&2; exit 5',
        "Something went wrong",
    ),
    "does it and is killed": ('/usr/sbin/lvm "$c" "$@"; kill -9 $$', "exit status -9"),
}
# Seconds. A healthy command takes far less than either, even on a busy machine.
LIMIT = {"hangs": 8.0}
USUAL_LIMIT = 60.0

# Every call of a command fails in turn only in `make test-guest-all`; else the first of each command.
ALL_ROWS = bool(os.environ.get("LVP_ALL_ROWS"))

Step = tuple[str, int]  # a command and the number of its call


@dataclass
class FaultInjection:
    """An operation to test. ``make`` returns a target for the folder of its tools and a time limit.

    ``prepare`` sets up the initial state, ``work`` runs the operation, ``judge`` checks the result; its argument is
    whether the operation succeeded.
    """

    make: Callable[[str, float], GroupTarget]
    prepare: Callable[[], Awaitable[None]]
    work: Callable[[GroupTarget], Awaitable[None]]
    judge: Callable[[bool], None]
    group: str
    steps: list[Step] = field(default_factory=list)

    async def undergo(self, folder: Path, fault: str) -> int:
        """Inject the fault into every call where it makes a difference; return the number of these calls."""
        await self.prepare()
        await self.work(self.make(a_tool(folder, "", 0, ""), USUAL_LIMIT))
        self.judge(True)
        steps = list(_cases(_numbered((folder / "calls").read_text().split()), fault))
        for command, number in steps:
            try:
                await self._one(folder, command, number, fault)
            except Exception as error:
                error.add_note(f"call {number} of {command} {fault}")
                raise
        return len(steps)

    async def _one(self, folder: Path, command: str, number: int, fault: str) -> None:
        await self.prepare()
        target = self.make(a_tool(folder, command, number, FAULTS[fault][0]), LIMIT.get(fault, USUAL_LIMIT))
        try:
            await self.work(target)
        except ProvisionerError as error:
            done = False
            said = " / ".join(str(link) for link in _chain(error))
            assert FAULTS[fault][1] in said, said
        else:
            done = True
        if any(name.startswith(("lvp.stage", "lvp.old", "lvp.gone")) for name in harness.volumes(self.group)):
            await self.make("", USUAL_LIMIT).recover(frozenset())
        self.judge(done)


def a_tool(folder: Path, command: str, number: int, fault: str) -> str:
    """Return a folder with an ``lvm`` that logs its calls and injects ``fault`` into call ``number`` of ``command``."""
    calls, tool = folder / "calls", folder / "lvm"
    calls.write_text("")
    tool.write_text(
        f'#!/bin/sh\nc=$1; shift\necho "$c" >> {calls}\nif [ "$c" = "{command}" ]; then\n'
        f'  if [ "$(grep -cx "$c" {calls})" = {number} ]; then {fault or ":"}; fi\nfi\n'
        'exec /usr/sbin/lvm "$c" "$@"\n'
    )
    tool.chmod(0o755)
    return str(folder)


def _numbered(calls: list[str]) -> Iterator[Step]:
    for at, command in enumerate(calls):
        yield command, calls[: at + 1].count(command)


def _cases(steps: Iterator[Step], fault: str) -> Iterator[Step]:
    for command, number in steps:
        is_report = command == "lvs"
        if fault == "fails":
            if number == 1 or ALL_ROWS:
                yield command, number
        elif fault == "hangs":  # the first call of each command is enough
            if number == 1:
                yield command, number
        elif fault == "does it and is killed":
            if command in {"lvcreate", "lvrename", "lvextend"}:
                yield command, number
        elif not is_report:  # a report changes nothing, so it cannot falsely claim to have done so
            yield command, number


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
