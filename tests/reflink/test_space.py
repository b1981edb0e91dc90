# ruff: noqa: ASYNC240 - small files of a test
"""Space that files share: eviction of bases, kept clones, a full disk."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from provisioner.contracts import GIB, MIB, Placement
from provisioner.contracts.errors import NoSpaceError
from tests.reflink.harness import DATA, SIZE, bases, clone, make_base, make_target, request, staged_files, write

pytestmark = pytest.mark.slow  # mounted file systems


def name(number):
    return f"sha256-{number:064x}.raw"


def free(folder):
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def assert_freed(folder, expected):
    """Wait until about ``expected`` bytes are free: file systems free the blocks of removed files in the background."""
    for _ in range(1000):
        os.sync()
        if free(folder) > expected - 8 * MIB:
            return
    raise AssertionError(f"{free(folder)} bytes are free instead of {expected}")


async def test_least_used_bases_over_the_limit_go(shared):
    target = make_target(shared, max_bases=2)
    first = await make_base(target, 1)
    await make_base(target, 2)
    await clone(target, first)  # the second is the least recently used now
    await make_base(make_target(shared, max_bases=2), 3)  # also after a restart
    assert bases(shared) == [name(1), name(3)]


async def test_job_that_needs_room_evicts_bases(small):
    """The least recently used first, and no more than needed."""
    target = make_target(small)
    room = free(small)
    data = b"\xa5" * (room // 4)
    for number in (1, 2, 3):
        await make_base(target, number, data)
    os.sync()
    wanted = request("web02", room * 2 // 5, "job-2")
    assert free(small) < wanted.size_bytes
    assert await target.placement(wanted) is Placement.NEW
    async with target.stage(wanted, verified=True) as staged:
        assert bases(small) == [name(2), name(3)]
        write(staged.device.path, data)
        await staged.commit(None)
    await target.aclose()


async def test_base_that_frees_nothing_stays(small):
    """All of its blocks are those of a volume, so its removal makes no room."""
    target = make_target(small)
    room = free(small)
    data = b"\xa5" * (room // 3)
    base = await make_base(target, 1, data)
    await clone(target, base, size=len(data))
    wanted = request("web02", room * 9 // 10, "job-2")
    with pytest.raises(NoSpaceError):
        await target.placement(wanted)
    with pytest.raises(NoSpaceError):
        async with target.stage(wanted, verified=True):
            raise AssertionError("there is no room")
    assert bases(small) == [name(1)]
    os.truncate(small / "web01.raw", 0)  # now the base has its blocks alone
    assert await target.placement(wanted) is Placement.NEW
    async with target.stage(wanted, verified=True):
        assert bases(small) == []
    await target.aclose()


async def test_kept_clone_is_freeable_as_far_as_it_is_alone(small):
    target = make_target(small, keep_replaced=3600)
    data = b"\xa5" * (32 * MIB)
    base = await make_base(target, 1, data)
    old = await clone(target, base, size=len(data))
    write(old.path, b"\xa5" * (4 * MIB))
    await clone(target, base, job="job-2", size=len(data))
    assert (await target.capacity()).freeable_bytes == 4 * MIB
    await target.aclose()


async def test_kept_clone_and_its_base_go_together(small):
    """Each shares its blocks only with the other: once one is removed for room, the other counts."""
    target = make_target(small, keep_replaced=3600, overcommit=True)
    room = free(small)
    data = b"\xa5" * (room // 3)
    base = await make_base(target, 1, data)
    old = await clone(target, base, size=len(data))
    write(old.path, b"\xa5" * (MIB))
    async with target.stage(request("web01", len(data), "job-2", data_bytes=0), verified=True) as staged:
        await staged.commit(None)
    os.sync()
    target._room.make(room * 9 // 10)
    assert bases(small) == []
    assert list(await target.kept()) == []
    await target.aclose()


async def test_base_under_a_clone_is_not_evicted_for_it(small):
    """The clone shares the blocks of its base, so its removal would make no room."""
    target = make_target(small, overcommit=True)
    room = free(small)
    base = await make_base(target, 1, b"\xa5" * (room * 2 // 3))
    strict = make_target(small)
    wanted = request("web01", room // 2, number=1)
    assert "that a clone and its base may need" in await strict.why_copy(wanted)
    with pytest.raises(NoSpaceError):
        await clone(strict, base, size=room // 2 + base.size_bytes)
    assert bases(small) == [name(1)]
    assert await strict.placement(wanted) is Placement.NEW  # a copy fits if the base goes
    assert await target.why_copy(wanted) is None
    await clone(target, base, size=2 * GIB)
    assert bases(small) == [name(1)]
    for one in (target, strict):
        await one.aclose()


@pytest.mark.parametrize("base_bytes", [0, 64 * MIB])
async def test_why_copy_counts_the_base(small, base_bytes):
    target = make_target(small)
    size = free(small) - 32 * MIB
    reason = await target.why_copy(request(size=size), base_bytes)
    assert (reason is None) == (base_bytes == 0)
    await target.aclose()


async def test_base_on_a_full_disk(small):
    """The image does not fit. Nothing is left, and there is as much room as before."""
    target = make_target(small)
    with pytest.raises(NoSpaceError):
        async with target.stage_base(request("raw", GIB, "job-base", 1, data_bytes=GIB)):
            raise AssertionError("there is no room")
    os.sync()
    before = free(small)
    with pytest.raises(OSError, match="No space left"):
        async with target.stage_base(request("raw", GIB, "job-base", 1)) as staged:
            write(staged.device.path, b"\xa5" * (GIB // 2))
    assert (bases(small), staged_files(small)) == ([], [])
    assert_freed(small, before)
    await make_base(target, 2)
    await target.aclose()


async def test_clone_on_a_full_disk(small):
    target = make_target(small, overcommit=True)
    base = await make_base(target)
    os.sync()
    before, filler = free(small), small / "filler"
    filler.touch()
    with pytest.raises(OSError, match="No space left"):
        write(filler, b"\xa5" * (GIB // 2))
    made = []
    for number in range(20):  # the metadata may or may not fit
        with suppress(NoSpaceError):
            made.append((await clone(target, base, f"web{number:02}", f"job-{number}")).name)
    assert staged_files(small) == []
    os.truncate(filler, 0)
    assert_freed(small, before)
    assert [volume.name for volume in await target.list()] == made
    for volume in await target.list():
        assert Path(volume.path).read_bytes() == DATA.ljust(SIZE, b"\0")
    await clone(target, base, "last", "job-last")
    await target.aclose()
