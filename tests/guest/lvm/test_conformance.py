"""Both targets pass the conformance suite of block targets on real volumes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from lvp_target_lvm import lvm
from provisioner.contracts.testing import BlockTargetConformance, CloneTargetConformance, KeepingTargetConformance
from tests.guest.lvm import harness
from tests.guest.lvm.openers import opened_midway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lvp_target_lvm.group import GroupTarget
    from provisioner.contracts import Base, BlockTarget, CloneTarget, KeepingTarget, Volume

OTHER = Path("/var/tmp/lab-other-state")


class GroupConformance(BlockTargetConformance):
    tries = 1
    resizes_online = True

    @asynccontextmanager
    async def opening_midway(self, target: GroupTarget, volume: Volume) -> AsyncIterator[None]:  # type: ignore[override]
        with opened_midway(target, volume) as reached:
            yield
            assert reached


class TestPlain(GroupConformance):
    bad_names = (*BlockTargetConformance.bad_names, "snapshot1", "pvmove0", "a_tdata", "lvp.stage.1", "x" * 120)

    @pytest.fixture(autouse=True)
    def _empty(self, plain: str) -> None:
        self.group = plain

    def make_target(self, folder: Path) -> BlockTarget:
        return harness.plain_target(self.group)

    def make_foreign_target(self, folder: Path) -> BlockTarget:
        return harness.plain_target(self.group, OTHER)


class TestThin(GroupConformance):
    @pytest.fixture(autouse=True)
    def _empty(self, thin: str) -> None:
        self.group = thin

    def make_target(self, folder: Path) -> BlockTarget:
        return harness.thin_target(self.group)

    def make_foreign_target(self, folder: Path) -> BlockTarget:
        return harness.thin_target(self.group, state=OTHER)


class TestPlainKeeps(KeepingTargetConformance):
    @pytest.fixture(autouse=True)
    def _empty(self, plain: str) -> None:
        self.group = plain

    def make_target(self, folder: Path, **settings: Any) -> KeepingTarget:
        return harness.plain_target(self.group, **settings)

    async def make_foreign_volume(self, folder: Path, name: str, data: bytes) -> None:
        harness.lvm("lvcreate", "--yes", "-L", "8m", "-n", name, self.group)
        harness.write(f"/dev/{self.group}/{name}", data)


class TestThinKeeps(KeepingTargetConformance):
    # The code is that of plain volumes, whose tests all run; these use every LVM command on thin ones.
    in_every_run = (
        "test_foreign_volume_is_kept", "test_restore_swaps_and_can_be_undone", "test_remove_kept",
        "test_recover_leaves_kept_volumes",
    )  # fmt: skip

    @pytest.fixture(autouse=True)
    def _empty(self, thin: str) -> None:
        self.group = thin

    def make_target(self, folder: Path, **settings: Any) -> KeepingTarget:
        return harness.thin_target(self.group, **settings)

    async def make_foreign_volume(self, folder: Path, name: str, data: bytes) -> None:
        harness.lvm("lvcreate", "--yes", "-V", "8m", "--thinpool", f"{self.group}/pool", "-n", name)
        harness.write(f"/dev/{self.group}/{name}", data)


class TestThinClones(CloneTargetConformance):
    @pytest.fixture(autouse=True)
    def _empty(self, thin: str) -> None:
        self.group = thin

    def make_target(self, folder: Path) -> CloneTarget:
        return cast("CloneTarget", harness.thin_target(self.group))

    async def remove_base(self, target: CloneTarget, base: Base) -> None:
        harness.lvm("lvremove", "--yes", f"{self.group}/{base.name}")

    # ``test_thin`` has tests of the same, which it needs for other reasons; these take half of the suite's time.
    @pytest.mark.slow
    async def test_clone_has_the_content_then_zeros(self, tmp_path: Path) -> None:
        await super().test_clone_has_the_content_then_zeros(tmp_path)

    @pytest.mark.slow
    async def test_clones_do_not_share_writes(self, tmp_path: Path) -> None:
        await super().test_clones_do_not_share_writes(tmp_path)

    @pytest.mark.slow
    async def test_clone_outlives_its_base(self, tmp_path: Path) -> None:
        await super().test_clone_outlives_its_base(tmp_path)

    @pytest.mark.slow
    async def test_clone_over_open_volume(self, tmp_path: Path) -> None:
        await super().test_clone_over_open_volume(tmp_path)


@pytest.mark.slow
async def test_opened_midway_twenty_times(plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LVM's own retries for a busy device are off because they take five seconds each."""
    monkeypatch.setattr(lvm, "_PINS", lvm._PINS + " activation{retry_deactivation=0}")
    monkeypatch.setattr(lvm, "_BUSY_TRIES", 1)
    suite = TestPlain()
    suite.group, suite.tries = plain, 20
    await suite.test_commit_races_with_open(tmp_path)
    await suite.test_remove_races_with_open(tmp_path)
