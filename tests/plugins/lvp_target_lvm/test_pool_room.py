from __future__ import annotations

import pytest
import trio
import trio.testing

from lvp_target_lvm import ThinSettings
from lvp_target_lvm.pool_room import pool_of, watched, why_full, why_too_large, with_reserve
from provisioner.contracts import GIB, MIB
from provisioner.contracts.errors import ConvertError, NoSpaceError, TargetUnavailableError
from tests.plugins.lvp_target_lvm.cases import a_pool, inventory, plain

SETTINGS = ThinSettings(volume_group="vg0", pool="pool")


def test_why_full_above_either_mark() -> None:
    assert why_full(SETTINGS, a_pool(data_percent=89.9, metadata_percent=79.9)) is None
    assert "data space" in str(why_full(SETTINGS, a_pool(data_percent=90.0)))
    assert "metadata space" in str(why_full(SETTINGS, a_pool(metadata_percent=80.0)))
    assert "out_of_data" in str(why_full(SETTINGS, a_pool(health="out_of_data")))


def test_why_full_with_data_to_be_written() -> None:
    assert why_full(SETTINGS, a_pool(data_percent=10.0), 79 * GIB) is None
    assert "would be 91.0% full" in str(why_full(SETTINGS, a_pool(data_percent=10.0), 81 * GIB))
    # 10 GiB in chunks of 64 KiB are 163840 mappings of 64 bytes: 10 MiB.
    small = a_pool(metadata_percent=5.0, metadata_size=12 * MIB)
    assert "metadata space" in str(why_full(SETTINGS, small, 10 * GIB))


def test_why_full_when_overwriting_in_place() -> None:
    marks = with_reserve(SETTINGS)
    assert (marks.high_water_data_percent, marks.high_water_metadata_percent) == (95.0, 90.0)
    assert why_full(marks, a_pool(data_percent=94.9)) is None
    assert "its high-water mark is 95%" in str(why_full(marks, a_pool(data_percent=95.0)))


def test_why_too_large_for_the_pool() -> None:
    assert why_too_large(SETTINGS, a_pool(), 100 * GIB) is None
    assert "larger than the whole thin pool vg0/pool" in str(why_too_large(SETTINGS, a_pool(), 100 * GIB + 1))


@pytest.mark.parametrize(
    ("volume", "why"),
    [(plain("other"), "does not exist"), (plain("pool"), "not a thin pool"), (a_pool(data_percent=None), "not active")],
)
def test_pool_of_an_unusable_pool(volume: object, why: str) -> None:
    with pytest.raises(TargetUnavailableError, match=why):
        pool_of(SETTINGS, inventory(volume))  # type: ignore[arg-type]


class Pool:
    """Returns the answers in turn, and then the last one again and again."""

    def __init__(self, *answers: str | Exception | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self) -> str | None:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_watched_stops_the_block(autojump_clock: trio.testing.MockClock) -> None:
    pool = Pool(None, TargetUnavailableError("a report failed"), "nearly full")
    with pytest.raises(NoSpaceError, match="before the pool ran full: nearly full"):
        async with watched(pool, 5):
            await trio.sleep_forever()
    assert pool.asked == 3
    assert trio.current_time() > 0


async def test_watched_block_that_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    pool = Pool(None)
    async with watched(pool, 5):
        await trio.sleep(12)
    assert pool.asked == 2


async def test_watched_raises_the_blocks_own_error(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(ZeroDivisionError):
        async with watched(Pool(None), 5):
            raise ZeroDivisionError


async def test_watched_block_that_fails_when_stopped(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(NoSpaceError) as caught:  # noqa: PT012
        async with watched(Pool("full"), 5):
            try:
                await trio.sleep_forever()
            finally:
                raise ConvertError("writing failed")
    assert isinstance(caught.value.__cause__, ConvertError)


async def test_watched_cancelled_from_outside(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1) as scope:
        async with watched(Pool(None), 5):
            await trio.sleep_forever()
    assert scope.cancelled_caught
