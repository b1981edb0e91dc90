"""A call that is killed at any of its steps: the volume is the old one or the new one, and nothing stays behind."""

import pytest
import trio

from lvp_target_rbd import RbdCloneTarget
from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.testing import a_provenance, a_request
from provisioner.contracts.testing.target_suite import DIGEST, fill
from provisioner.contracts.types import MIB, StageRequest
from tests.ceph.host import Place

# (function, when, number of the call): the steps of a swap.
SWAP = [
    ("verify", "after", 1), ("set_aside", "before", 1), ("note", "after", 1), ("rename", "before", 1),
    ("rename", "after", 1), ("rename", "before", 2), ("rename", "after", 2), ("release", "before", 1),
]  # fmt: skip
KEEP = [("rename", "before", 3), ("rename", "after", 3)]
BASE = [("verify", "after", 1), ("refuse_watched", "after", 1), ("snapshots_of", "before", 1), ("rename", "before", 1)]
DISCARD = [("note", "after", 1), ("rename", "before", 1), ("rename", "after", 1), ("remove", "before", 1)]


@pytest.fixture
def place(ceph, tmp_path):
    return Place(ceph, tmp_path / "place")


async def provision(target, data, job_id="job-1"):
    async with target.stage(a_request("web01", 8 * MIB, job_id), verified=True) as staged:
        fill(staged.device, data)
        return await staged.commit(DIGEST)


async def killed(place, point, work, call):
    """Run ``work`` with a process that is killed at ``point``, and with a service that is killed then too."""
    function, when, number = point
    with place.fault(function, when, "kill", number=number, call=call):
        with pytest.raises((ProvisionerError, ExceptionGroup)):
            await work()
        assert (place.faults / "reached").exists(), "the point was not reached"


class DeadError(Exception):
    """The service dies here: nothing of its own is cleaned up."""


def cannot_clean_up(target):
    async def dead(*_):
        raise DeadError

    target._clean_up = dead
    return target


def gone(place):
    return "web01" not in place.names()


async def assert_recovered(place, expected):
    """Recover as after a restart, twice; check the content of web01 and that nothing is left."""
    restarted = place.target()
    await restarted.recover(frozenset())
    assert list(await restarted.recover(frozenset())) == []
    found = await restarted.find("web01")
    assert found is not None
    assert (await trio.to_thread.run_sync(place.read, "web01", 8)).rstrip(b"\0") in expected
    kept = {one.kept_as for one in await restarted.kept()}
    assert place.names() == {"web01", *kept}
    for one in kept:
        await restarted.remove_kept(one)
    # Not by the target, which would wait for the lease of the call that was killed. Its watch ends after 10 s.
    place.ceph.wait_for(
        lambda: place.ceph.rbd("rm", "--no-progress", f"{place.spec}/web01", check=False) or gone(place)
    )
    leases = {name for name in place.objects() if name.startswith("lvp.lease.name.")}
    assert place.objects() == leases


@pytest.mark.parametrize(
    ("point", "keep"), [(point, 0) for point in SWAP] + [(point, 3600) for point in [*SWAP, *KEEP]]
)
async def test_swap_killed(place, point, keep):
    await provision(place.target(), b"old")
    target = cannot_clean_up(place.target(keep_replaced=keep))
    await killed(place, point, lambda: provision(target, b"new", "job-2"), "publish")
    await target.aclose()
    await assert_recovered(place, {b"old", b"new"})


@pytest.mark.parametrize("point", DISCARD)
async def test_removal_killed(place, point):
    target = place.target()
    await provision(target, b"old")
    await killed(place, point, lambda: target.remove("web01"), "discard")
    restarted = place.target()
    await restarted.recover(frozenset())
    assert list(await restarted.recover(frozenset())) == []
    if "web01" in place.names():
        assert place.read("web01", 3) == b"old"
        await restarted.remove("web01")
    assert place.names() == set()
    assert not [name for name in place.objects() if not name.startswith("lvp.lease.name.")]


@pytest.mark.parametrize("point", BASE)
async def test_import_killed(place, point):
    """Another host takes over at once: the lease ends with the service that is killed."""
    target = cannot_clean_up(place.target(make=RbdCloneTarget))

    async def make_base(one):
        async with one.stage_base(StageRequest("raw", 8 * MIB, a_provenance("job-base", DIGEST))) as staged:
            fill(staged.device, b"image")
            await staged.commit(DIGEST)

    await killed(place, point, lambda: make_base(target), "publish_base")
    await target.aclose()
    other = place.target("other", make=RbdCloneTarget)
    assert await other.base(DIGEST, "raw") is None
    await make_base(other)
    base = await other.base(DIGEST, "raw")
    assert len(await place.target(make=RbdCloneTarget).recover(frozenset())) == 1
    assert place.names() == {base.name}
    assert place.read(base.name, 5) == b"image"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_clone_killed(place, when):
    target = place.target(make=RbdCloneTarget)
    async with target.stage_base(StageRequest("raw", 8 * MIB, a_provenance("job-base", DIGEST))) as staged:
        await staged.commit(DIGEST)
    base = await target.base(DIGEST, "raw")
    dead = cannot_clean_up(place.target(make=RbdCloneTarget))

    async def clone():
        async with dead.stage_clone(base, a_request("web01", 16 * MIB)) as staged:
            await staged.commit(DIGEST)

    await killed(place, ("clone", when, 1), clone, "clone")
    await target.recover(frozenset())
    assert list(await target.recover(frozenset())) == []
    assert place.names() == {base.name}
    target._last_used.clear()
    (spare,) = target._evictable(await target._client.inventory())
    await target._remove_image(spare, "")
    assert place.objects() == set()
