"""Volumes whose data is in an erasure-coded pool: three OSDs in sparse files, two parts of each object and one parity.

The OSDs are BlueStore, because Ceph overwrites parts of objects in an erasure-coded pool only there.
"""

import tempfile
from pathlib import Path

import pytest

from lvp_target_rbd import RbdCloneTarget
from provisioner.contracts import SecretRef
from provisioner.contracts.errors import TargetUnavailableError
from provisioner.contracts.testing import a_provenance, a_request
from provisioner.contracts.testing.target_suite import DIGEST, fill
from provisioner.contracts.types import MIB, StageRequest
from tests.ceph.cluster import cluster
from tests.ceph.host import Place

DATA = "coded"
# More than one object of 4 MiB, and no multiple of it.
CONTENT = bytes(range(256)) * (5 * MIB // 256)
SIZE = 16 * MIB
# Without the faults that tests plan: `lvp doctor` also loads modules with it.
PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def coded():
    """Return a cluster of its own with the erasure-coded pool."""
    with cluster(Path(tempfile.mkdtemp(prefix="lvp-ceph-")), osds=3, store="bluestore") as running:
        running.ceph("osd", "erasure-code-profile", "set", "two", "k=2", "m=1", "crush-failure-domain=osd")
        running.make_pool(DATA, "erasure", "two")
        yield running


@pytest.fixture
def place(coded, tmp_path):
    return Place(coded, tmp_path / "place", data_pool=DATA)


async def provision(target, data, job_id="job-1"):
    async with target.stage(a_request("web01", SIZE, job_id), verified=True) as staged:
        fill(staged.device, data)
        return await staged.commit(DIGEST)


def write_again(path):
    """Write a part of a stripe that has data."""
    with Path(path).open("r+b", buffering=0) as file:
        file.seek(1000)
        file.write(b"again")


def data_objects(place):
    """Return the names of the objects with data in both pools."""
    return [{name for name in place.objects(pool) if name.startswith("rbd_data.")} for pool in (place.pool, DATA)]


def assert_data_is_coded(place):
    plain, coded = data_objects(place)
    assert not plain
    assert coded


async def test_copy_is_replaced_grown_and_removed(place, coded):
    target = place.target(keep_replaced=3600)
    async with target.stage(a_request("web01", SIZE), verified=True) as staged:
        fill(staged.device, CONTENT)
        write_again(staged.device.path)
        volume = await staged.commit(DIGEST)
    expected = CONTENT[:1000] + b"again" + CONTENT[1005:]
    assert (volume.path, volume.size_bytes) == (f"rbd:{place.spec}/web01", SIZE)
    assert place.read("web01", len(expected)) == expected
    assert_data_is_coded(place)

    replaced = (await provision(target, b"second", "job-2")).replaced
    assert place.read("web01", 6) == b"second"
    assert place.read(replaced.kept_as, len(expected)) == expected
    assert (await target.resize("web01", 2 * SIZE)).size_bytes == 2 * SIZE
    place.write("web01", b"guest")
    await target.restore(replaced.kept_as, "restore-1")
    assert place.read("web01", len(expected)) == expected
    assert_data_is_coded(place)

    await target.remove("web01")
    for kept in await target.kept():
        await target.remove_kept(kept.kept_as)
    assert place.objects() == place.objects(DATA) == set()


async def test_base_and_clones(place):
    """An import, its clones and a guest's writes are all in the data pool; the parent of a clone may be elsewhere."""
    target, other = place.target(make=RbdCloneTarget), place.target("other", make=RbdCloneTarget)
    async with target.stage_base(StageRequest("raw", SIZE, a_provenance("job-base", DIGEST))) as staged:
        fill(staged.device, CONTENT)
        assert_data_is_coded(place)
        await staged.commit(DIGEST)
    base = await other.base(DIGEST, "raw")
    imported = data_objects(place)
    for name in ("web01", "web02"):
        async with other.stage_clone(base, a_request(name, 2 * SIZE)) as staged:
            await staged.commit(DIGEST)
    assert data_objects(place) == imported
    place.write("web01", b"guest")
    assert place.read("web01", len(CONTENT)) == b"guest" + CONTENT[5:]
    assert place.read("web02", len(CONTENT)) == CONTENT
    assert data_objects(place) > imported
    assert_data_is_coded(place)
    # Without the setting, as before it was made: a clone's own data is in the pool of the names.
    async with place.target(make=RbdCloneTarget, data_pool="").stage_clone(base, a_request("web03", SIZE)) as staged:
        await staged.commit(DIGEST)
    place.write("web03", b"plain")
    assert place.read("web03", len(CONTENT)) == b"plain" + CONTENT[5:]
    assert data_objects(place)[0]

    async with other.stage_clone(base, a_request("web01", SIZE, "job-2")) as staged:
        await staged.commit(DIGEST)
    assert place.read("web01", len(CONTENT)) == CONTENT
    for name in ("web01", "web02", "web03"):
        await target.remove(name)
    target._last_used.clear()
    (spare,) = target._evictable(await target._client.inventory())
    await target._remove_image(spare, "")
    assert place.objects() == place.objects(DATA) == set()


async def test_service_that_dies_leaves_no_data(place):
    abandoned = place.target().stage(a_request("web01", SIZE, "job-dead"), verified=True)
    target = place.target()
    staged = await abandoned.__aenter__()
    fill(staged.device, CONTENT)
    await target.recover(frozenset({"job-dead"}))
    assert_data_is_coded(place)
    staged._export._child.kill()
    await place.target().recover(frozenset())
    assert place.objects() == place.objects(DATA) == set()
    await abandoned.__aexit__(None, None, None)


async def test_capacity_is_that_of_the_data_pool(place, coded):
    """Two of three bytes hold data; the pool of the names has no redundancy here."""
    seen = {one["name"]: one["stats"]["max_avail"] for one in coded.json("df")["pools"]}
    free = (await place.target().capacity()).free_bytes
    assert abs(free - seen[DATA]) < 64 * MIB
    assert seen[DATA] < 0.7 * seen[place.pool]


async def assert_refused(target, says):
    """The job fails so, and ``lvp doctor`` says it too."""
    with pytest.raises(TargetUnavailableError, match=says):
        await provision(target, b"data")
    wrong = [one for one in await target.diagnose() if not one.ok]
    assert [says in one.what and bool(one.fix) for one in wrong] == [True], wrong


async def test_data_pool_that_does_not_exist(place):
    target = place.target(data_pool="nowhere", python=PYTHON)
    await assert_refused(target, "the data pool nowhere does not exist")
    assert place.objects() == set()


async def test_data_pool_that_the_key_does_not_open(place, coded):
    caps = f"profile rbd pool={place.pool} namespace={place.namespace}"
    keyring = SecretRef(f"file:{coded.make_user('closed', 'mon', 'profile rbd', 'osd', caps)}")
    await assert_refused(place.target(user="closed", keyring=keyring, python=PYTHON), "check its key")
    assert place.objects() == set()


async def test_data_pool_without_overwrites(place, coded):
    coded.ceph("osd", "pool", "create", "stiff", "8", "erasure", "two")
    coded.rbd("pool", "init", "stiff", check=False)
    settings = {"data_pool": "stiff", "user": "admin", "keyring": SecretRef(f"file:{coded.admin_keyring}")}
    target = place.target(python=PYTHON, **settings)
    await assert_refused(target, "stiff is not ready for images")
    coded.ceph("osd", "pool", "set", "stiff", "allow_ec_overwrites", "true")
    coded.rbd("pool", "init", "stiff")
    await provision(target, b"data")
    assert place.read("web01", 4) == b"data"
    await target.remove("web01")
    assert place.objects("stiff") == set()


async def test_erasure_coded_pool_for_the_names(place, coded):
    """Only data may be in such a pool; the error says which setting is meant for it."""
    admin = {"user": "admin", "keyring": SecretRef(f"file:{coded.admin_keyring}")}
    wrong = place.target(pool=DATA, data_pool="", namespace="", **admin)
    with pytest.raises(TargetUnavailableError, match="set it as data_pool"):
        await provision(wrong, b"data")
