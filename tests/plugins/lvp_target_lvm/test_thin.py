"""The usage times of bases that a thin target keeps in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lvp_target_lvm import ThinCloneTarget, ThinSettings, names, thin
from lvp_target_lvm.thin import make_thin_target
from provisioner.contracts import GIB, BackEndContext
from provisioner.contracts.errors import ResizeError
from tests.plugins.lvp_target_lvm.cases import a_pool, base, inventory, ours

if TYPE_CHECKING:
    from pathlib import Path

    from lvp_target_lvm.report import Inventory


@pytest.fixture
def target(tmp_path: Path) -> ThinCloneTarget:
    made = make_thin_target(ThinSettings(volume_group="vg0", pool="pool"), BackEndContext("thin", tmp_path))
    assert isinstance(made, ThinCloneTarget)
    return made


async def test_usage_times_of_removed_bases(target: ThinCloneTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand images come and go; only the recent ones stay in memory."""
    now, stock = [1e9], [inventory(a_pool())]

    async def look() -> Inventory:
        return stock[0]

    monkeypatch.setattr(target.lvm, "recent_inventory", look)
    monkeypatch.setattr(thin.time, "time", lambda: now[0])
    for number in range(1000):
        digest = f"sha256:{number:064x}"
        name = names.base_name(digest, "qcow2")
        stock[0] = inventory(a_pool(), base(name, digest, now[0]))
        assert await target.base(digest, "qcow2") is not None
        with target._using(name):
            assert target._under_job == {name: 1}
        now[0] += thin._BASE_GRACE / 4
    assert len(target._last_used) <= 6
    assert target._under_job == {}


async def test_usage_time_of_a_recently_used_base(target: ThinCloneTarget) -> None:
    """The inventory may be a second old and not include the base yet."""
    with target._using("lvp.base.new"):
        target._forget_gone(inventory(a_pool()))
    target._forget_gone(inventory(a_pool()))
    assert "lvp.base.new" in target._last_used


async def test_resize_if_the_pool_does_not_zero(target: ThinCloneTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write to a part of a new chunk would show a previous owner's data in the rest."""
    stock = inventory(a_pool(zero=False), ours("web01", layout=frozenset({"thin"}), pool="pool"))

    async def look() -> Inventory:
        return stock

    monkeypatch.setattr(target.lvm, "inventory", look)
    monkeypatch.setattr(target, "_claim", look)
    with pytest.raises(ResizeError, match=r"does not zero new chunks.*lvchange -Zy vg0/pool"):
        await target.resize("web01", 20 * GIB)
    assert not target.lvm.calls
