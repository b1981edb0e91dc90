from __future__ import annotations

import pytest
import trio
import trio.testing

from lvp_target_lvm import ThinSettings
from lvp_target_lvm.pools import pool_of, watched, why_full, why_too_large, with_reserve
from provisioner.contracts import GIB, MIB
from provisioner.contracts.errors import ConvertError, NoSpaceError, TargetUnavailableError
from tests.plugins.lvp_target_lvm.cases import a_pool, inventory, plain

SETTINGS = ThinSettings(volume_group="vg0", pool="pool")


def test_the_marks_hold_for_data_and_for_metadata() -> None:
    assert why_full(SETTINGS, a_pool(data_percent=89.9, metadata_percent=79.9)) is None
    assert "data space" in str(why_full(SETTINGS, a_pool(data_percent=90.0)))
    assert "metadata space" in str(why_full(SETTINGS, a_pool(metadata_percent=80.0)))
    assert "out_of_data" in str(why_full(SETTINGS, a_pool(health="out_of_data")))


def test_what_is_to_be_written_counts_in_whole_chunks() -> None:
    assert why_full(SETTINGS, a_pool(data_percent=10.0), 79 * GIB) is None
    assert "would be 91.0% full" in str(why_full(SETTINGS, a_pool(data_percent=10.0), 81 * GIB))
    # 10 GiB in chunks of 64 KiB are 163840 mappings of 64 bytes: 10 MiB.
    small = a_pool(metadata_percent=5.0, metadata_size=12 * MIB)
    assert "metadata space" in str(why_full(SETTINGS, small, 10 * GIB))


def test_overwriting_in_place_may_use_half_of_the_reserve() -> None:
    marks = with_reserve(SETTINGS)
    assert (marks.high_water_data_percent, marks.high_water_metadata_percent) == (95.0, 90.0)
    assert why_full(marks, a_pool(data_percent=94.9)) is None
    assert "its high-water mark is 95%" in str(why_full(marks, a_pool(data_percent=95.0)))


def test_one_volume_may_not_be_larger_than_its_pool() -> None:
    assert why_too_large(SETTINGS, a_pool(), 100 * GIB) is None
    assert "larger than the whole thin pool vg0/pool" in str(why_too_large(SETTINGS, a_pool(), 100 * GIB + 1))


@pytest.mark.parametrize(
    ("volume", "why"),
    [(plain("other"), "not there"), (plain("pool"), "not a thin pool"), (a_pool(data_percent=None), "not active")],
)
def test_a_pool_that_cannot_be_used_says_why(volume: object, why: str) -> None:
    with pytest.raises(TargetUnavailableError, match=why):
        pool_of(SETTINGS, inventory(volume))  # type: ignore[arg-type]


class Pool:
    """Answers in turn; the last answer stays."""

    def __init__(self, *answers: str | Exception | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self) -> str | None:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_block_in_a_filling_pool_is_stopped(autojump_clock: trio.testing.MockClock) -> None:
    pool = Pool(None, TargetUnavailableError("a report failed"), "nearly full")
    with pytest.raises(NoSpaceError, match="before the pool ran full: nearly full"):
        async with watched(pool, 5):
            await trio.sleep_forever()
    assert pool.asked == 3
    assert trio.current_time() > 0


async def test_a_block_that_ends_in_time_is_let_go(autojump_clock: trio.testing.MockClock) -> None:
    pool = Pool(None)
    async with watched(pool, 5):
        await trio.sleep(12)
    assert pool.asked == 2


async def test_the_blocks_own_error_goes_out_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(ZeroDivisionError):
        async with watched(Pool(None), 5):
            raise ZeroDivisionError


async def test_what_the_block_makes_of_its_cancel_does_not_hide_the_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(NoSpaceError) as caught:  # noqa: PT012
        async with watched(Pool("full"), 5):
            try:
                await trio.sleep_forever()
            finally:
                raise ConvertError("writing failed")
    assert isinstance(caught.value.__cause__, ConvertError)


async def test_a_cancel_from_outside_is_a_cancel(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1) as scope:
        async with watched(Pool(None), 5):
            await trio.sleep_forever()
    assert scope.cancelled_caught
