"""Undo steps run although the task is cancelled, and never for ever."""

import pytest
import trio

from provisioner.contracts.errors import RollbackError
from provisioner.contracts.undo import undoing


async def test_it_runs_although_the_task_is_cancelled():
    done = False
    with trio.CancelScope() as scope:
        scope.cancel()
        with undoing("remove it"):
            await trio.lowlevel.checkpoint()
            done = True
    assert done


async def test_what_takes_too_long_is_loud(autojump_clock):
    with pytest.raises(RollbackError, match="could not remove it within 3 s"), undoing("remove it", 3):
        await trio.sleep_forever()
    assert trio.current_time() >= 3


async def test_what_fails_is_loud_and_keeps_its_cause():
    with pytest.raises(RollbackError, match="could not remove it: busy") as caught, undoing("remove it"):
        raise OSError("busy")
    assert isinstance(caught.value.__cause__, OSError)
