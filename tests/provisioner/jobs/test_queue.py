"""The queue of waiting jobs: order, discarding and stopping."""

import gc
import weakref

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from provisioner.jobs.queue import PriorityQueue


class Item:
    def __init__(self, name, priority):
        self.name, self.priority = name, priority


async def drain(line):
    got = []
    while len(line):
        got.append((await line.get()).name)
    return got


async def test_queue_by_priority_then_arrival():
    line = PriorityQueue()
    for name, priority in [("a", 0), ("b", 5), ("c", 0), ("d", -1), ("e", 5)]:
        line.put(Item(name, priority), priority)
    assert await drain(line) == ["b", "e", "a", "c", "d"]


@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), max_size=12))
def test_discarded_item_is_not_served(people):
    async def main():
        line, items = PriorityQueue(), []
        for number, (priority, _) in enumerate(people):
            items.append(Item(number, priority))
            line.put(items[-1], priority)
        for item, (_, leaves) in zip(items, people, strict=True):
            if leaves:
                line.discard(item)
        stay = [item for item, (_, leaves) in zip(items, people, strict=True) if not leaves]
        assert len(line) == len(stay)
        expected = [item.name for item in sorted(stay, key=lambda item: -item.priority)]
        assert await drain(line) == expected
        with trio.move_on_after(0):
            await line.get()
            raise AssertionError("nobody was left")

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_queue_serves_each_waiter_once():
    line, got = PriorityQueue(), []

    async def wait():
        got.append((await line.get()).name)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        line.put(Item("a", 0), 0)
        line.put(Item("b", 0), 0)
    assert sorted(got) == ["a", "b"]


async def test_stopped_queue_serves_no_items(autojump_clock):
    line = PriorityQueue()
    item = Item("a", 0)
    line.put(item, 0)
    line.stop()
    with trio.move_on_after(5) as scope:
        await line.get()
    assert scope.cancelled_caught
    assert len(line) == 1
    line.discard(item)
    assert len(line) == 0


def test_discarded_items_are_freed():
    """Submit and cancel while every worker is busy: no memory is kept."""
    line = PriorityQueue()
    first = Item("first", 0)
    line.put(first, 0)
    gone = []
    for number in range(3000):
        item = Item(number, 0)
        line.put(item, 0)
        line.discard(item)
        gone.append(weakref.ref(item))
    del item
    gc.collect()
    assert [ref for ref in gone if ref() is not None] == []
    assert len(line._heap) < 200
    assert len(line) == 1
