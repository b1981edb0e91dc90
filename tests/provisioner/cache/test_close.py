"""The end of the cache: its index is not closed under a look-up that still runs in the thread."""

import threading

import trio
import trio.testing

from provisioner.cache import ImageCache
from provisioner.cache import cache as cache_module
from provisioner.config import CacheSettings


def held(files, events, begun, gate):
    """Use the index in the cache's thread until the gate opens."""
    begun.set()
    gate.wait()
    files.index.sums("0" * 64)
    events.append("looked up")


async def closing_while_held(tmp_path, monkeypatch, events, gate, *, opens):
    """Cancel the cache while a look-up runs in its thread; return the function that really closes the index.

    ``opens``: the look-up ends once the cache waits to close; else only after the cache has given up.
    """
    cache = ImageCache(tmp_path / "cache", CacheSettings())
    begun = threading.Event()
    async with trio.open_nursery() as lookups, trio.open_nursery() as nursery:
        await nursery.start(cache.run)
        index = cache._files.index
        close = index.close
        monkeypatch.setattr(type(index), "close", lambda _self: (close(), events.append("closed")))
        lookups.start_soon(cache._in_thread, lambda files: held(files, events, begun, gate))
        await trio.to_thread.run_sync(begun.wait)
        nursery.cancel_scope.cancel()
        if opens:
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            assert events == []
            gate.set()
        else:
            lookups.start_soon(_open_later, gate, events)
    return close


async def _open_later(gate, events):
    while "left open" not in events:  # noqa: ASYNC110 - written by the log, not by a task
        await trio.sleep(0.005)
    gate.set()


async def test_index_is_closed_after_a_running_look_up(tmp_path, monkeypatch):
    events = []
    await closing_while_held(tmp_path, monkeypatch, events, threading.Event(), opens=True)
    assert events == ["looked up", "closed"]


async def test_index_of_a_hung_look_up_is_left_open(tmp_path, monkeypatch):
    """A thread that hangs on the disk does not delay the end of the service, and the index stays open under it."""
    monkeypatch.setattr(cache_module, "CLOSE_TIMEOUT", 0.05)
    events = []
    monkeypatch.setattr(cache_module.log, "error", lambda *_, **__: events.append("left open"), raising=False)
    close = await closing_while_held(tmp_path, monkeypatch, events, threading.Event(), opens=False)
    assert events == ["left open", "looked up"]
    close()
