"""Tests of the scheduling policy of threads with long work, as the kernel reports it."""

import os
import subprocess
import sys

import pytest
import trio

from provisioner.contracts import run_long
from provisioner.contracts.threads import ThreadQueue, as_batch


def policy() -> int:
    return os.sched_getscheduler(0)


async def test_long_work_runs_as_batch() -> None:
    assert await run_long(policy) == os.SCHED_BATCH
    assert await ThreadQueue("test", threads=1, most_waiting=1).run(policy) == os.SCHED_BATCH


def test_policy_is_restored() -> None:
    def fail() -> None:
        raise ValueError

    assert as_batch(lambda: (policy(), policy())) == (os.SCHED_BATCH, os.SCHED_BATCH)
    with pytest.raises(ValueError, match=r"^$"):
        as_batch(fail)
    assert policy() == os.SCHED_OTHER


def test_work_within_work_stays_batch() -> None:
    assert as_batch(lambda: (as_batch(policy), policy())) == (os.SCHED_BATCH, os.SCHED_BATCH)
    assert policy() == os.SCHED_OTHER


async def test_other_threads_and_the_loop_keep_their_policy() -> None:
    inside, leave = trio.Event(), trio.Event()

    def wait() -> None:
        trio.from_thread.run_sync(inside.set)
        trio.from_thread.run(leave.wait)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_long, wait)
        await inside.wait()
        assert policy() == os.SCHED_OTHER
        assert await trio.to_thread.run_sync(policy) == os.SCHED_OTHER
        leave.set()


CODE = """
import os
from provisioner.contracts.threads import as_batch
exec("{first}")
print(as_batch(lambda: os.sched_getscheduler(0)), os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))
"""


def said(first: str) -> list[int]:
    ran = subprocess.run([sys.executable, "-c", CODE.format(first=first)], check=True, capture_output=True, text=True)
    return [int(word) for word in ran.stdout.split()]


def test_special_policy_is_kept() -> None:
    """A service that its administrator runs under SCHED_IDLE stays there."""
    assert said("os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))")[:2] == [os.SCHED_IDLE, os.SCHED_IDLE]


def test_user_without_permissions() -> None:
    first = "os.setpriority(os.PRIO_PROCESS, 0, 3); os.getuid() or os.setuid(65534)"
    assert said(first) == [os.SCHED_BATCH, os.SCHED_OTHER, 3]
