"""The suites of block targets, run with the file target on XFS and btrfs."""

from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lvp_target_file import FileCloneTarget, FileSettings, make_file_target
from provisioner.contracts import BackEndContext
from provisioner.contracts.testing import BlockTargetConformance, CloneTargetConformance, KeepingTargetConformance
from tests.plugins.lvp_target_file.openers import opened_before_rename

pytestmark = pytest.mark.slow  # mounted file systems


class OnReflinks:
    """Ignores the folder that a suite passes, and uses one on a file system with reflinks."""

    @pytest.fixture(autouse=True)
    def _on_reflinks(self, shared):
        self.folder = shared

    def make_target(self, _folder, state="state", **settings):
        target = make_file_target(
            FileSettings(str(self.folder), **settings), BackEndContext("images", self.folder / ".lvp" / state)
        )
        assert isinstance(target, FileCloneTarget)
        return target


class TestConforms(OnReflinks, BlockTargetConformance):
    def make_foreign_target(self, folder):
        return self.make_target(folder, "other")

    @asynccontextmanager
    async def opening_midway(self, target, volume):
        with opened_before_rename(volume) as opener:
            yield
            assert opener.inode() == Path(volume.path).stat().st_ino  # noqa: ASYNC240


class TestKeeps(OnReflinks, KeepingTargetConformance):
    async def make_foreign_volume(self, _folder, name, data):
        (self.folder / f"{name}.raw").write_bytes(data.ljust(self.size, b"\0"))


class TestClones(OnReflinks, CloneTargetConformance):
    async def remove_base(self, _target, base):
        (self.folder / ".lvp/base" / base.name).unlink()
