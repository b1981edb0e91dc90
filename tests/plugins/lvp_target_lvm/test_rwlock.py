"""Reports beside each other, changes alone, and nobody is passed over."""

from __future__ import annotations

import trio
import trio.testing

from lvp_target_lvm.rwlock import RWLock


class Party:
    """Who is in, as it happens; each stays until it is let go."""

    def __init__(self) -> None:
        self.turns = RWLock()
        self.inside: list[str] = []
        self.let_go: dict[str, trio.Event] = {}

    async def take(self, name: str) -> None:
        event = self.let_go[name] = trio.Event()
        async with self.turns.write() if name.startswith("change") else self.turns.read():
            self.inside.append(name)
            await event.wait()
            self.inside.remove(name)


async def test_a_change_is_alone_and_no_report_goes_before_it_that_came_later() -> None:
    party = Party()
    async with trio.open_nursery() as nursery:
        for name in ("report 1", "report 2", "change 1", "report 3", "report 4", "change 2"):
            nursery.start_soon(party.take, name)
            await trio.testing.wait_all_tasks_blocked()
        for inside in (["report 1", "report 2"], ["report 2"], ["change 1"], ["report 3", "report 4"], ["report 4"],
                       ["change 2"]):  # fmt: skip
            assert party.inside == inside
            party.let_go[inside[0]].set()
            await trio.testing.wait_all_tasks_blocked()


async def test_who_is_cancelled_is_in_nobodys_way() -> None:
    party = Party()
    async with trio.open_nursery() as nursery:
        for name in ("report 1", "change 1", "report 2"):
            scope = await nursery.start(_in_a_scope, party, name)
            if name == "change 1":
                waiting = scope
            await trio.testing.wait_all_tasks_blocked()
        waiting.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert party.inside == ["report 1", "report 2"]
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert party.inside == ["report 1"]
        nursery.start_soon(party.take, "change 2")
        party.let_go["report 1"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert party.inside == ["change 2"]
        party.let_go["change 2"].set()


async def _in_a_scope(party: Party, name: str, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        try:
            await party.take(name)
        finally:
            if name in party.inside:
                party.inside.remove(name)
