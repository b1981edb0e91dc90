"""Tests of what the target ``rbd`` decides from names, metadata and figures. None needs a cluster."""

import pytest

from lvp_target_rbd import RbdSettings, bases, names, recovery_decisions
from lvp_target_rbd.placement import capacity_of, place, rounded, why_no_room
from lvp_target_rbd.records import Aside, Image, tags_of
from provisioner.contracts import GIB, Capacity, Placement, Provenance, SecretRef
from provisioner.contracts.errors import NoSpaceError, VolumeExistsError, VolumeNameError
from provisioner.contracts.settings import InvalidSettingsError
from provisioner.contracts.testing import a_provenance, a_request

OWNER, OTHER, TOKEN = "a" * 12, "b" * 12, "1" * 16
NOW = 1_700_000_000.0
SETTINGS = RbdSettings(pool="vms")


def stage(owner=OWNER, **more):
    tags = {"name": "web01", "job": "job-1", "token": TOKEN, "owner": owner}
    return Image(names.Working("stage", owner, TOKEN).name, "id-new", tags=tags, **more)


def old(role="old", until=0.0, new="id-new", **more):
    aside = Aside("web01", TOKEN, "job-1", OWNER, NOW, until, new)
    return Image(names.Working(role, OWNER, TOKEN).name, "id-old", aside=aside, **more)


def decided(*images, live=(), owner=OWNER):
    found = {image.name: image for image in images}
    decisions = recovery_decisions.decide(found, lambda job, _: job not in live, owner, NOW)
    return [[(step.call, *step.arguments.values()) for step in decision.steps] for decision in decisions]


STAGED, OLD, KEPT = stage().name, old().name, names.KEPT + TOKEN


@pytest.mark.parametrize(
    ("images", "steps"),
    [
        ([stage()], [[("remove", STAGED, "id-new")]]),
        ([stage(), Image("web01", "id-old")], [[("remove", STAGED, "id-new")]]),
        ([stage(), old()], [[("put_back", OLD, "id-old", "web01")], [("remove", STAGED, "id-new")]]),
        ([old(), Image("web01", "id-new")], [[("remove", OLD, "id-old")]]),
        ([old(until=NOW + 60), Image("web01", "id-new")], [[("rename", OLD, KEPT, "id-old")]]),
        ([Image(OLD, "id-old")], [[]]),
        ([old("gone")], [[("remove", old("gone").name, "id-old")]]),
        ([old("gone", watchers=("10.0.0.5:0/1",))], [[("put_back", old("gone").name, "id-old", "web01")]]),
        ([old("gone", until=NOW, watchers=("10.0.0.5:0/1",))], [[("rename", old("gone").name, KEPT, "id-old")]]),
        ([old("gone", clones=1)], []),
        ([Image(STAGED, "id-new", broken=True)], [[("remove", STAGED, "id-new")]]),
        ([Image("web01", "id-1"), Image(KEPT, "id-2", aside=old().aside), Image("lvp.base.x", "id-3")], []),
    ],
)
def test_recovery(images, steps):
    assert decided(*images) == steps


def test_recovery_keeps_the_old_volume_if_another_host_took_its_name():
    (steps,) = decided(old(), Image("web01", "id-other"))
    assert [step[0] for step in steps] == ["note", "rename"]
    assert Aside.parse(steps[0][3]).until >= NOW + 86400
    assert steps[1] == ("rename", OLD, KEPT, "id-old")


def test_recovery_leaves_live_jobs_and_other_installations():
    assert decided(stage(), old(), live={"job-1"}) == []
    assert decided(stage(OTHER)) == [[]]
    assert decided(stage(OTHER, watchers=("10.0.0.5:0/1",))) == []
    assert decided(stage(OTHER), owner=None) == [[("remove", stage(OTHER).name, "id-new")]]


def test_candidates_are_the_names_that_half_a_rename_leaves():
    found = recovery_decisions.candidates([], {STAGED: stage(), OLD: old()}, OWNER)
    assert found["web01"] == {"id-new", "id-old"}
    assert found[STAGED] == found[OLD] == found[KEPT] == set()
    assert recovery_decisions.candidates([], {STAGED: stage()}, OWNER, live={TOKEN}) == {}
    assert recovery_decisions.candidates([], {STAGED: stage(OTHER)}, OWNER) == {}
    assert recovery_decisions.candidates([], {STAGED: stage(OTHER)}, None)["web01"] == {"id-new"}
    committed = Image("web01", "id", tags={"name": "web01", "token": TOKEN, "owner": OWNER})
    found = recovery_decisions.candidates([], {"web01": committed}, OWNER)
    assert found[STAGED] == set()
    assert "web01" not in found


def test_tags_round_trip():
    origin = Provenance("job-1", "https://images.example.com/ü.raw", "sha256:ab", NOW, "openpgp:9D2E", "web")
    image = Image.of({"name": "web-seed", "id": "i", "size": 1, "tags": tags_of("web-seed", TOKEN, OWNER, origin)})
    assert image.provenance == origin
    renamed = Image.of({"name": "copy", "id": "i", "size": 1, "tags": tags_of("web-seed", TOKEN, OWNER, origin)})
    assert renamed.provenance is None


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"name": 1}'])
def test_damaged_metadata_is_nobodys(text):
    assert Image.of({"name": "web", "id": "i", "tags": text, "aside": text}).provenance is None


@pytest.mark.parametrize("name", ["web01", "a" * 96, "_x", "a.b+c-d"])
def test_valid_names(name):
    names.check(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "a@b", "a:b", "a,b", "a=b", "lvp.x", "a" * 97, "ü"])
def test_invalid_names(name):
    with pytest.raises(VolumeNameError):
        names.check(name)


def test_quota_is_the_size():
    free = {"stored": 10 * GIB, "max_avail": 90 * GIB}
    assert capacity_of(free) == Capacity(100 * GIB, 90 * GIB)
    assert capacity_of({**free, "quota_bytes": 50 * GIB}) == Capacity(50 * GIB, 40 * GIB)
    assert capacity_of({**free, "quota_bytes": 5 * GIB}) == Capacity(5 * GIB, 0)


def test_room():
    space = Capacity(100 * GIB, 20 * GIB)
    assert why_no_room(SETTINGS, space, 50 * GIB, 5 * GIB) is None
    assert "91% full" in why_no_room(SETTINGS, space, 50 * GIB, 11 * GIB)
    assert "larger than pool vms" in why_no_room(SETTINGS, space, 101 * GIB, 0)
    assert rounded(4097) == 8192


def test_full_pool_has_no_room():
    to_the_end = RbdSettings(pool="vms", max_used_percent=100)
    assert why_no_room(to_the_end, Capacity(100 * GIB, GIB), GIB, GIB) is None
    assert why_no_room(to_the_end, Capacity(100 * GIB, 0), 0, 0) == "pool vms is full"
    # What is stored in a cluster that became full may be less than a volume needs.
    assert why_no_room(SETTINGS, Capacity(GIB, 0), 2 * GIB, 0) == "pool vms is full"


def test_placement():
    request = a_request()
    assert place(SETTINGS, None, request, None).placement is Placement.NEW
    assert place(SETTINGS, Image("web01", "i"), request, None).placement is Placement.SWAP
    with pytest.raises(NoSpaceError, match="the existing volume web01 is kept"):
        place(SETTINGS, Image("web01", "i"), request, "full")
    with pytest.raises(VolumeExistsError, match="has snapshots \\(daily\\)"):
        place(SETTINGS, Image("web01", "i", snapshots=("daily",)), request, None)
    for refusing in (RbdSettings(pool="vms", replace="refuse"), RbdSettings(pool="vms", foreign="refuse")):
        with pytest.raises(VolumeExistsError):
            place(refusing, Image("web01", "i"), request, None)


def test_eviction_order():
    def base(number, **more):
        tags = {"digest": f"sha256:{number}", "name": f"lvp.base.{number}"}
        return Image(f"lvp.base.{number}", str(number), tags=tags, snapshots=("image",), **more)

    origin = a_provenance("job-1", "sha256:1")
    volume = Image.of({"name": "web", "id": "v", "tags": tags_of("web", TOKEN, OWNER, origin)})
    unfinished = Image("lvp.base.9", "9")
    images = {one.name: one for one in (base(1), base(2), base(3, clones=1), base(4), volume, unfinished)}
    order = bases.eviction_order(images, {"lvp.base.4": 5.0}, {"lvp.base.2"})
    assert [one.name for one in order] == ["lvp.base.4", "lvp.base.1"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"pool": ""}, "pool"),
        ({"pool": "a/b"}, "pool"),
        ({"namespace": "a b"}, "namespace"),
        ({"user": ""}, "user"),
        ({"keyring": SecretRef("env:KEY")}, "keyring"),
        ({"max_bases": 0}, "max_bases"),
        ({"max_used_percent": 0.0}, "max_used_percent"),
    ],
)
def test_wrong_settings(wrong, says):
    with pytest.raises(InvalidSettingsError, match=says):
        RbdSettings(**{"pool": "vms", **wrong})


def test_keyring_is_a_file_or_a_credential(tmp_path):
    in_file = RbdSettings(pool="vms", keyring=SecretRef(f"file:{tmp_path}/key"), conf=str(tmp_path / "conf"))
    assert in_file.keyring_path({}) == f"{tmp_path}/key"
    found = in_file.check_files()
    assert (found["keyring"].ok, found["conf"].ok) == (False, False)
    (tmp_path / "key").touch()
    assert in_file.check_files()["keyring"].ok
    credential = RbdSettings(pool="vms", keyring=SecretRef("credential:ceph"))
    assert credential.keyring_path({"CREDENTIALS_DIRECTORY": "/run/credentials/x"}) == "/run/credentials/x/ceph"
    assert "keyring" not in credential.check_files()
