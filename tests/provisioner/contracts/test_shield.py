"""Shielded work runs in a cancelled task, and an expired deadline raises."""

import threading

import pytest
import trio
import trio.testing

from provisioner.contracts.cancel_shield import ShieldExpiredError, shielded, undoing
from provisioner.contracts.errors import RollbackError


async def test_undoing_in_cancelled_task():
    done = False
    with trio.CancelScope() as scope:
        scope.cancel()
        with undoing("remove it"):
            await trio.lowlevel.checkpoint()
            done = True
    assert done


async def test_undoing_timeout(autojump_clock):
    with pytest.raises(RollbackError, match="could not remove it within 3 s"), undoing("remove it", 3):
        await trio.sleep_forever()
    assert trio.current_time() >= 3


async def test_undoing_failure_keeps_cause():
    with pytest.raises(RollbackError, match="could not remove it: busy") as caught, undoing("remove it"):
        raise OSError("busy")
    assert isinstance(caught.value.__cause__, OSError)


async def test_shielded_timeout(autojump_clock):
    with pytest.raises(ShieldExpiredError, match="could not store it within 3 s"), shielded("store it", 3):
        await trio.sleep_forever()


async def test_shielded_timeout_before_thread_starts():
    """If the deadline expires while waiting for the limiter, the work never starts and the caller gets an error."""
    limiter, free, done = trio.CapacityLimiter(1), threading.Event(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: trio.to_thread.run_sync(free.wait, limiter=limiter))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ShieldExpiredError), shielded("store it", 0.01):
            await trio.to_thread.run_sync(done.append, 1, limiter=limiter)
        free.set()
    assert done == []


async def test_shielded_error_propagates():
    with pytest.raises(OSError, match="busy"), shielded("store it", 3):
        raise OSError("busy")
