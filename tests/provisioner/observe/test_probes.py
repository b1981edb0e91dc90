"""Tests of probes with a mock clock: one task per question, the last answer meanwhile, and no pile-up."""

from __future__ import annotations

import pytest
import trio

from provisioner.observe.probes import NoAnswerError, Probe, Probes


class Thing:
    """Answers with the number of questions so far, once ``gate`` is set."""

    def __init__(self):
        self.asked, self.gate = 0, trio.Event()
        self.gate.set()

    async def ask(self):
        self.asked += 1
        await self.gate.wait()
        return self.asked


@pytest.fixture
async def probes(nursery):
    made = Probes()
    await nursery.start(made.run)
    return made


async def test_answer_is_kept(probes, autojump_clock):
    thing = Thing()
    probe = Probe(probes, thing.ask)
    assert [await probe.answer(3) for _ in range(5)] == [1] * 5
    await trio.sleep(4)
    assert await probe.answer(3) == 2
    assert await probe.answer() in {2, 3}


async def test_hung_question_is_asked_once(probes, autojump_clock):
    """The last answer is used for a while, then an error is raised; no call waits longer than ``patience``."""
    thing = Thing()
    probe = Probe(probes, thing.ask, patience=1, limit=5)
    assert await probe.answer(3) == 1
    await trio.sleep(4)
    thing.gate = trio.Event()
    before = trio.current_time()
    assert await probe.answer(3) == 1
    assert trio.current_time() - before == pytest.approx(1)
    await trio.sleep(8)
    for _ in range(3):
        before = trio.current_time()
        with pytest.raises(NoAnswerError, match="no answer for 9 s"):
            await probe.answer(3)
        assert trio.current_time() == before
    assert thing.asked == 2
    thing.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert await probe.answer(3600) == 2


async def test_no_answer_yet(probes, autojump_clock):
    thing = Thing()
    thing.gate = trio.Event()
    with pytest.raises(NoAnswerError, match="no answer for 1 s"):
        await Probe(probes, thing.ask).answer()


async def test_answer_begins_after_the_call(probes, autojump_clock):
    """A listing that began earlier may not show what the caller has just done."""
    thing = Thing()
    thing.gate = trio.Event()
    probe = Probe(probes, thing.ask, patience=10, limit=10)
    found = []

    async def call():
        found.append(await probe.answer())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await trio.sleep(1)
        for _ in range(3):
            nursery.start_soon(call)
        await trio.sleep(1)
        thing.gate.set()
    assert found == [1, 2, 2, 2]


async def test_error_is_raised_to_all(probes, autojump_clock):
    async def fail():
        raise OSError("no disk")

    probe = Probe(probes, fail)
    for _ in range(2):
        with pytest.raises(OSError, match="no disk"):
            await probe.answer(3)
