"""Renames, half renames and clones: what Ceph does there, and that no volume is lost by it."""

import subprocess
import threading

import pytest
import trio

from lvp_target_rbd import RbdCloneTarget, names
from lvp_target_rbd.client import Client
from provisioner.contracts.errors import BaseExistsError, NotFoundError, ProvisionerError, VolumeExistsError
from provisioner.contracts.testing import a_provenance, a_request
from provisioner.contracts.testing.target_suite import DIGEST, fill
from provisioner.contracts.types import MIB, StageRequest

RACERS = 6


@pytest.fixture
def place(ceph, tmp_path):
    from tests.ceph.host import Place

    return Place(ceph, tmp_path / "place")


async def provision(target, data, name="web01", job_id="job-1"):
    async with target.stage(a_request(name, 8 * MIB, job_id), verified=True) as staged:
        fill(staged.device, data)
        return await staged.commit(DIGEST)


async def make_base(target, data=b"image", job_id="job-base"):
    async with target.stage_base(StageRequest("raw", 8 * MIB, a_provenance(job_id, DIGEST))) as staged:
        fill(staged.device, data)
        await staged.commit(DIGEST)
    return await target.base(DIGEST, "raw")


async def test_one_winner_of_a_race_for_a_name(place):
    """A plain rename tells several racers that they won."""
    client, won, lost = Client(place.settings()), [], []
    for number in range(RACERS):
        await client.call("create", name=f"racer{number}", size=MIB, tags="{}", data_pool="")
    images = await client.inventory()

    async def race(name):
        try:
            await client.call("rename", source=name, name="goal", image_id=images[name].id)
            won.append(name)
        except VolumeExistsError:
            lost.append(name)

    async with trio.open_nursery() as nursery:
        for name in images:
            nursery.start_soon(race, name)
    assert (len(won), len(lost)) == (1, RACERS - 1)
    after = await client.inventory()
    assert after["goal"].id == images[won[0]].id
    assert set(after) == {"goal", *lost}


async def test_removing_one_of_two_names_of_an_image_is_refused(place):
    """The second half of a rename is missing: the old name still leads to the committed volume."""
    target = place.target()
    volume = await provision(target, b"first")
    staged = names.Working("stage", await target._claim(), "ab" * 8).name
    two_names(place, "web01", staged)
    client = Client(place.settings())
    (image,) = (await client.inventory()).values()
    with pytest.raises(VolumeExistsError):
        await client.call("remove", name=staged, image_id=image.id)
    assert await target.find("web01") == volume
    assert place.read("web01", 5) == b"first"


@pytest.mark.parametrize("role", ["stage", "old", "gone"])
async def test_recovery_forgets_the_old_name_of_a_committed_volume(place, role):
    target = place.target()
    volume = await provision(target, b"first")
    tags = (await Client(place.settings()).look("web01"))["web01"].tags
    two_names(place, "web01", names.Working(role, tags["owner"], tags["token"]).name)
    assert len(await place.target().recover(frozenset())) == 1
    assert list(await place.target().recover(frozenset())) == []
    assert await target.find("web01") == volume
    assert place.read("web01", 5) == b"first"
    assert not [name for name in place.objects() if name.startswith("rbd_id.lvp.")]


async def test_recovery_forgets_the_new_name_of_a_staged_volume(place):
    """The first half of a rename: the new name leads to the image, but the directory does not list it."""
    target = place.target()
    abandoned = target.stage(a_request("web01", 8 * MIB, "job-dead"), verified=True)
    staged = await abandoned.__aenter__()
    await target.aclose()
    two_names(place, staged._staging.name, "web01")
    assert await target.find("web01") is None
    assert len(await place.target().recover(frozenset())) == 2
    assert place.names() == set()
    assert "rbd_id.web01" not in place.objects()
    await abandoned.__aexit__(None, None, None)
    assert (await provision(place.target(), b"again")).name == "web01"


async def test_name_that_another_host_is_giving_is_not_forgotten(place):
    """Both hosts stage web01, and one of them is in the middle of its rename when the other one recovers."""
    target, other = place.target(), place.target("other")
    stagings = [one.stage(a_request("web01", 8 * MIB, "job-dead"), verified=True) for one in (target, other)]
    (dead, giving) = [await staging.__aenter__() for staging in stagings]
    await target.aclose()
    two_names(place, giving._staging.name, "web01")
    await place.target().recover(frozenset())
    assert "rbd_id.web01" in place.objects()
    assert dead._staging.name not in place.names()
    await other.recover(frozenset({"job-dead"}))
    assert "rbd_id.web01" in place.objects()
    for staging in reversed(stagings):
        await staging.__aexit__(None, None, None)
    assert place.objects() == set()


@pytest.mark.parametrize("half", ["first", "second"])
async def test_restore_that_stops_in_its_rename(place, half):
    target = place.target(keep_replaced=3600)
    await provision(target, b"first")
    kept_as = (await provision(target, b"second", job_id="job-2")).replaced.kept_as
    await target.remove("web01")
    with place.fault("rename", "before" if half == "first" else "after", "kill", call="publish"):
        target._clean_up = never_cleaned_up
        with pytest.raises(ProvisionerError):
            await target.restore(kept_as, "restore-1")
    if half == "first":
        two_names(place, kept_as, "web01")
    else:
        two_names(place, "web01", kept_as)
    restarted = place.target(keep_replaced=3600)
    assert len(await restarted.recover(frozenset())) == 1
    assert list(await restarted.recover(frozenset())) == []
    if half == "first":
        await restarted.restore(kept_as, "restore-2")
    assert place.read("web01", 5) == b"first"
    assert place.names() == {"web01"}


async def never_cleaned_up(_staging):
    raise ProvisionerError("the service died")


async def test_recovery_forgets_the_name_of_an_image_that_was_never_listed(place):
    """A create that is killed after its first write; only this host knows the name."""
    target, token = place.target(), "cd" * 8
    name = names.Working("stage", await target._claim(), token).name
    target._exports.note(token, {})
    place.write("web01", b"theirs", MIB)
    two_names(place, "web01", name)
    other = place.target("other")
    assert list(await other.recover(frozenset())) == []
    assert len(await place.target().recover(frozenset())) == 1
    assert f"rbd_id.{name}" not in place.objects()
    assert place.read("web01", 6) == b"theirs"
    assert list(await place.target().recover(frozenset())) == []


async def test_volume_of_another_tool_is_no_ours(place):
    """A clone or a copy inherits the tags of its parent."""
    target = place.target(make=RbdCloneTarget)
    base = await make_base(target)
    clone = place.ceph.rbd
    clone("clone", "--rbd-default-clone-format", "2", f"{place.spec}/{base.name}@image", f"{place.spec}/theirs")
    found = await target.find("theirs")
    assert found is not None
    assert found.provenance is None
    with pytest.raises(NotFoundError):
        await target.remove("theirs")
    assert list(await target.list()) == []


async def test_base_with_clones_is_not_retired(place):
    target = place.target(make=RbdCloneTarget)
    base = await make_base(target)
    async with target.stage_clone(base, a_request("web01", 8 * MIB)) as staged:
        await staged.commit(DIGEST)
    client = Client(place.settings())
    image = (await client.look(base.name))[base.name]
    assert image.clones == 1
    with pytest.raises(ProvisionerError, match="1 clones"):
        await client.call("retire", base=base.name, base_id=image.id, to=names.Working("gone", "ab" * 6, "cd" * 8).name)
    assert await target.base(DIGEST, "raw") == base
    assert list(target._evictable(await client.inventory())) == []
    await target.remove("web01")
    assert await target.base(DIGEST, "raw") == base
    target._last_used.clear()
    (spare,) = target._evictable(await client.inventory())
    await target._remove_image(spare, "")
    assert place.objects() == set()


async def test_base_cloned_in_the_middle_of_its_retirement(place):
    """Between the look at its clones and the end of its snapshot: the clone keeps its data."""
    target, other = place.target(make=RbdCloneTarget), place.target("other", make=RbdCloneTarget)
    base = await make_base(target)
    image = (await Client(place.settings()).look(base.name))[base.name]
    made = threading.Event()

    def clone_midway():
        faults = place.faults
        while not (faults / "reached").exists():
            made.wait(0.01)
        spec = f"{place.spec}/{names.Working('gone', owner, token).name}@image"
        place.ceph.rbd("clone", "--rbd-default-clone-format", "2", spec, f"{place.spec}/theirs")
        made.set()
        (faults / "go").touch()

    owner, token = await target._claim(), "ef" * 8
    thread = threading.Thread(target=clone_midway)
    with place.fault("clones_of", "after", "pause", call="retire"):
        thread.start()
        with pytest.raises(ProvisionerError):
            await Client(place.settings()).call(
                "retire", base=base.name, base_id=image.id, to=names.Working("gone", owner, token).name
            )
        thread.join()
    assert place.read("theirs", 5) == b"image"
    assert list(await target.recover(frozenset())) == list(await other.recover(frozenset())) == []
    assert place.read("theirs", 5) == b"image"


async def test_second_base_is_refused(place):
    target, other = place.target(make=RbdCloneTarget), place.target("other", make=RbdCloneTarget)
    base = await make_base(target)
    with pytest.raises(BaseExistsError):
        await make_base(other)
    assert await other.base(DIGEST, "raw") == base


async def test_unknown_name_is_not_reported_as_missing_without_a_pool(place):
    """A failed look-up never means that a volume does not exist."""
    target = place.target(pool="nowhere")
    with pytest.raises(ProvisionerError, match="the pool nowhere does not exist"):
        await target.find("web01")


def two_names(place, name, other):
    """Let a second name lead to an image, as half a rename does."""
    held = place.folder / "id"
    place.ceph.rados(*where(place), "get", f"rbd_id.{name}", str(held))
    place.ceph.rados(*where(place), "put", f"rbd_id.{other}", str(held))


def where(place):
    return "--pool", place.pool, "--namespace", place.namespace


def test_removing_the_wrong_name_destroys_a_volume(place):
    """Why all this is needed: what Ceph itself does with the second name."""
    place.write("web01", b"first", MIB)
    two_names(place, "web01", "other")
    place.ceph.rbd("rm", "--no-progress", f"{place.spec}/other", check=False)
    with pytest.raises(subprocess.CalledProcessError):
        place.read("web01")
