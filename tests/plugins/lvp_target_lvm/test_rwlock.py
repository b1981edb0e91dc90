"""Reports run together, changes run alone, and all of them run in order."""

from __future__ import annotations

import trio
import trio.testing

from lvp_target_lvm.rwlock import RWLock


class Holders:
    """Tracks which reports and changes hold the lock. Each holds it until its event in ``let_go`` is set."""

    def __init__(self) -> None:
        self.lock = RWLock()
        self.inside: list[str] = []
        self.let_go: dict[str, trio.Event] = {}

    async def take(self, name: str) -> None:
        event = self.let_go[name] = trio.Event()
        async with self.lock.write() if name.startswith("change") else self.lock.read():
            self.inside.append(name)
            await event.wait()
            self.inside.remove(name)


async def test_changes_run_alone_and_in_order() -> None:
    holders = Holders()
    async with trio.open_nursery() as nursery:
        for name in ("report 1", "report 2", "change 1", "report 3", "report 4", "change 2"):
            nursery.start_soon(holders.take, name)
            await trio.testing.wait_all_tasks_blocked()
        for inside in (["report 1", "report 2"], ["report 2"], ["change 1"], ["report 3", "report 4"], ["report 4"],
                       ["change 2"]):  # fmt: skip
            assert holders.inside == inside
            holders.let_go[inside[0]].set()
            await trio.testing.wait_all_tasks_blocked()


async def test_a_cancelled_waiter_blocks_no_other() -> None:
    holders = Holders()
    async with trio.open_nursery() as nursery:
        for name in ("report 1", "change 1", "report 2"):
            scope = await nursery.start(_in_a_scope, holders, name)
            if name == "change 1":
                waiting = scope
            await trio.testing.wait_all_tasks_blocked()
        waiting.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert holders.inside == ["report 1", "report 2"]
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert holders.inside == ["report 1"]
        nursery.start_soon(holders.take, "change 2")
        holders.let_go["report 1"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert holders.inside == ["change 2"]
        holders.let_go["change 2"].set()


async def _in_a_scope(holders: Holders, name: str, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        try:
            await holders.take(name)
        finally:
            if name in holders.inside:
                holders.inside.remove(name)
