"""Kept volumes on a model of a volume group: power cuts after each change, room, and refusals.

The model executes LVM's commands on an inventory. A volume's UUID stands for its content.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lvp_target_lvm import LvmSettings, PlainTarget, ThinSettings, devices
from lvp_target_lvm.thin import ThinTarget
from provisioner.contracts import GIB, BackEndContext, Duration, Owner, Placement
from provisioner.contracts.errors import (
    NoSpaceError,
    NotFoundError,
    ProvisionerError,
    VolumeExistsError,
    VolumeInUseError,
)
from provisioner.contracts.testing import a_provenance, a_request
from tests.plugins.lvp_target_lvm.cases import a_pool, inventory, plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lvp_target_lvm.group import GroupTarget
    from lvp_target_lvm.report import Inventory, Lv

SIZE = 10 * GIB


class PowerCut(BaseException):
    """A simulated power cut. The code under test does not catch it."""


class Model:
    """A volume group. After ``left`` changes the power is cut."""

    def __init__(self, *volumes: Lv, total: int = 100 * GIB) -> None:
        self.volumes = {lv.name: lv for lv in volumes}
        self.total = total
        self.left = 10**6
        self.ran: list[str] = []

    async def inventory(self) -> Inventory:
        free = self.total - sum(lv.size for lv in self.volumes.values() if not lv.pool and not lv.is_pool)
        return inventory(*self.volumes.values(), free=free)

    async def change(self, command: str, *words: str) -> None:
        if not self.left:
            raise PowerCut
        self.left -= 1
        self.ran.append(" ".join((command, *words)))
        getattr(self, command)(list(words))

    def lvcreate(self, words: list[str]) -> None:
        name = words[words.index("--name") + 1]
        thin = "--virtualsize" in words
        size = words[words.index("--virtualsize" if thin else "--size") + 1]
        assert name not in self.volumes
        made = plain(name, int(size.removesuffix("b")), uuid=f"uuid-{len(self.ran)}-{name}", tags=self._tags(words))
        self.volumes[name] = self._thin(made) if thin else made

    def lvchange(self, words: list[str]) -> None:
        lv = self._take(words[-1])
        stale = [words[at + 1] for at, word in enumerate(words) if word == "--deltag"]
        kept = tuple(tag for tag in lv.tags if tag not in stale)
        active = lv.active if not {"-an", "-ay"} & set(words) else "-ay" in words
        self.volumes[lv.name] = replace(lv, tags=(*kept, *self._tags(words)), active=active)

    def lvrename(self, words: list[str]) -> None:
        _, old, new = words
        assert new not in self.volumes, "LVM refuses a name that is taken"
        self.volumes[new] = replace(self._take(old), name=new)

    def lvremove(self, words: list[str]) -> None:
        self._take(words[-1])

    def _take(self, name: str) -> Lv:
        name = name.rpartition("/")[2]
        if name not in self.volumes:
            raise NotFoundError(f"{name} does not exist")
        return self.volumes.pop(name)

    @staticmethod
    def _tags(words: list[str]) -> tuple[str, ...]:
        return tuple(words[at + 1] for at, word in enumerate(words) if word == "--addtag")

    @staticmethod
    def _thin(lv: Lv) -> Lv:
        return replace(lv, layout=frozenset({"thin", "sparse"}), pool="pool", data_percent=40.0)

    @property
    def contents(self) -> dict[str, str]:
        return {name: lv.uuid for name, lv in self.volumes.items() if not lv.is_pool}


FOREIGN = plain("web01", SIZE, tags=("customer",))


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., GroupTarget]:
    """Return a function that returns a target on a model."""
    current: list[Model] = []

    async def size_of(path: str) -> int:
        return current[-1].volumes[path.rpartition("/")[2]].size

    async def number(path: str, number: int | None = None) -> int:
        return 1

    async def no(*_: object) -> bool:
        return False

    monkeypatch.setattr("lvp_target_lvm.group.LOCKS", tmp_path)
    monkeypatch.setattr(devices, "size_of", size_of)
    monkeypatch.setattr(devices, "appeared", number)
    monkeypatch.setattr(devices, "is_there", no)
    monkeypatch.setattr(devices, "is_blank", no)

    def make(model: Model, *, thin: bool = False, **settings: Any) -> GroupTarget:
        current.append(model)
        context = BackEndContext("lab", tmp_path / "state")
        common = {"volume_group": "vg0", "stale_data": "keep", **settings}
        target: GroupTarget
        if thin:
            target = ThinTarget(ThinSettings(pool="pool", **common), context)
        else:
            target = PlainTarget(LvmSettings(**common), context)
        for name, function in (
            ("inventory", model.inventory),
            ("recent_inventory", model.inventory),
            ("change", model.change),
        ):
            monkeypatch.setattr(target.lvm, name, function)
        return target

    return make


async def provision(target: GroupTarget, job: str = "job-1", name: str = "web01", size: int = SIZE) -> None:
    async with target.stage(a_request(name, size, job), verified=True) as staged:
        await staged.commit("sha256:" + "0" * 64)


async def restore(target: GroupTarget) -> None:
    (kept,) = await target.kept()
    await target.restore(kept.kept_as, "restore-1")


async def restored_before(make: Callable[..., GroupTarget], model: Model) -> None:
    await provision(make(model))


async def free_name(make: Callable[..., GroupTarget], model: Model) -> None:
    await provision(make(model))
    await make(model).remove("web01")


async def nothing(make: Callable[..., GroupTarget], model: Model) -> None:
    """Leave the foreign volume alone."""


CASES = {"replace": (nothing, provision), "restore": (restored_before, restore), "restore free": (free_name, restore)}
# Replace: create, digest, tag, deactivate, rename, rename, rename. Restore: tag, (tag, deactivate, rename,) rename,
# (rename,) activate, remove tags.
CHANGES = {"replace": 7, "restore": 8, "restore free": 4}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("interrupt_recovery", [False, True])
async def test_power_cut_after_every_change(
    make: Callable[..., GroupTarget], case: str, interrupt_recovery: bool
) -> None:
    prepare, work = CASES[case]
    for changes in range(20):
        model = Model(FOREIGN)
        await prepare(make, model)
        before = set(model.contents.values())
        model.left = changes
        with suppress(PowerCut, BaseExceptionGroup):
            await work(make(model))
        done = model.left > 0
        for left in range(4 if interrupt_recovery else 0):
            model.left = left
            with suppress(PowerCut):
                await make(model).recover(frozenset())
        model.left = 10**6
        await make(model).recover(frozenset())
        assert list(await make(model).recover(frozenset())) == []
        await assert_nothing_lost(make(model), model, before)
        if done or changes == CHANGES[case]:
            assert changes == CHANGES[case]
            return
    raise AssertionError("it did not finish")


async def assert_nothing_lost(target: GroupTarget, model: Model, before: set[str]) -> None:
    assert before <= set(model.contents.values())
    kept = {one.kept_as: one for one in await target.kept()}
    assert set(model.contents) <= {"web01", *kept}
    for one in kept.values():
        assert one.volume == "web01"
        assert one.owner is (Owner.FOREIGN if model.volumes[one.kept_as].uuid == FOREIGN.uuid else Owner.OURS)
    volume = model.volumes.get("web01")
    if volume is None:
        assert kept
    elif volume.uuid == FOREIGN.uuid:
        assert volume == FOREIGN
    else:
        assert volume.active
        assert "by" not in volume.noted


@pytest.mark.parametrize("thin", [False, True])
async def test_restore_can_be_undone(make: Callable[..., GroupTarget], thin: bool) -> None:
    model = Model(Model._thin(FOREIGN) if thin else FOREIGN, a_pool())
    target = make(model, thin=thin)
    await provision(target)
    made = model.contents["web01"]
    for expected in (FOREIGN.uuid, made, FOREIGN.uuid):
        (kept,) = await target.kept()
        restored = await target.restore(kept.kept_as, "restore-1")
        assert model.contents["web01"] == expected
        assert restored.owner is (Owner.FOREIGN if expected == FOREIGN.uuid else Owner.OURS)
        assert restored.replaced is not None
        assert restored.replaced.kept_as in model.volumes
        assert restored.replaced.kept_until is not None
    assert target._live == set()


async def test_restore_while_it_is_removed(make: Callable[..., GroupTarget]) -> None:
    target = make(Model(FOREIGN))
    await provision(target)
    (kept,) = await target.kept()
    with target._working_on(kept.kept_as):
        for call in (target.restore(kept.kept_as, "restore-1"), target.remove_kept(kept.kept_as)):
            with pytest.raises(VolumeInUseError, match="being restored or removed"):
                await call


async def test_restore_over_volume_of_another_type(make: Callable[..., GroupTarget]) -> None:
    model = Model(FOREIGN)
    target = make(model)
    await provision(target)
    (kept,) = await target.kept()
    model.volumes["web01"] = replace(model.volumes["web01"], layout=frozenset({"raid"}))
    with pytest.raises(VolumeExistsError, match="another type"):
        await target.restore(kept.kept_as, "restore-1")


async def test_room_from_kept_volumes(make: Callable[..., GroupTarget]) -> None:
    """Ours only, the oldest first, no more than needed, and none if that is not enough."""
    model = Model(FOREIGN, total=45 * GIB)
    target = make(model, keep_replaced=Duration(3600))
    for number in range(3):
        await provision(target, f"job-{number}")
    assert (await target.capacity()).freeable_bytes == 2 * SIZE
    with pytest.raises(NoSpaceError):
        await provision(target, "job-3", "web02", 30 * GIB)
    assert len(await target.kept()) == 3
    assert await target.placement(a_request("web02", SIZE)) is Placement.NEW
    await provision(target, "job-4", "web02")
    kept = sorted(await target.kept(), key=lambda one: one.replaced_at)
    assert [(one.job_id, one.owner) for one in kept] == [("job-0", Owner.FOREIGN), ("job-2", Owner.OURS)]


async def test_room_in_pool_from_kept_volumes(make: Callable[..., GroupTarget]) -> None:
    model = Model(Model._thin(FOREIGN), a_pool(data_percent=50.0))
    target = make(model, thin=True, keep_replaced=Duration(3600))
    for job in ("job-1", "job-2"):
        await provision(target, job)
    assert (await target.capacity()).freeable_bytes == SIZE * 4 // 10
    model.volumes["pool"] = a_pool(data_percent=92.0)
    assert await target.placement(a_request("web02", SIZE)) is Placement.NEW
    with suppress(ProvisionerError):  # in the model, a removal frees nothing
        await provision(target, "job-3", "web02")
    assert [one.owner for one in await target.kept()] == [Owner.FOREIGN]


async def test_foreign_volume_in_place(make: Callable[..., GroupTarget], monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(FOREIGN, total=12 * GIB)
    target = make(model, replace="in-place")
    with pytest.raises(VolumeExistsError, match="no room to keep it"):
        await target.placement(a_request("web01", SIZE))
    allowed = make(model, replace="in-place", foreign="overwrite")
    assert await allowed.placement(a_request("web01", SIZE)) is Placement.IN_PLACE

    async def yes(_: str) -> bool:
        return True

    monkeypatch.setattr(devices, "is_blank", yes)
    assert await target.placement(a_request("web01", SIZE)) is Placement.IN_PLACE
    model.volumes["web01"] = FOREIGN
    with pytest.raises(VolumeExistsError, match='foreign = "refuse"'):
        await make(model, replace="in-place", foreign="refuse").placement(a_request("web01", SIZE))


async def test_adopt(make: Callable[..., GroupTarget]) -> None:
    model = Model(replace(FOREIGN, open=True), plain("raid", SIZE, layout=frozenset({"raid"})))
    target = make(model)
    volume = await target.adopt("web01", a_provenance("adopt-1"))
    assert volume.provenance == a_provenance("adopt-1")
    assert model.volumes["web01"].open
    assert "customer" in model.volumes["web01"].tags
    with pytest.raises(VolumeExistsError, match="already"):
        await target.adopt("web01", a_provenance("adopt-2"))
    with pytest.raises(VolumeExistsError, match="another type"):
        await target.adopt("raid", a_provenance("adopt-2"))
    with pytest.raises(NotFoundError):
        await target.adopt("web02", a_provenance("adopt-2"))
