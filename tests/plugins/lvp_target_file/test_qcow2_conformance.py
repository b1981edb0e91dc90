# ruff: noqa: ASYNC240 - small files of a test
"""The conformance suites of block targets, run with qcow2 volumes: overlays, and ones that stand alone."""

from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import pytest

from lvp_target_file import FileOverlayTarget, FileTarget, holders
from provisioner.contracts.errors import ResizeError
from provisioner.contracts.testing import BlockTargetConformance, CloneTargetConformance, KeepingTargetConformance
from tests.plugins.lvp_target_file.openers import opened_before_rename
from tests.plugins.lvp_target_file.qcow2_images import check, content, make_target, tool, write_inside


class OnQcow2:
    settings = MappingProxyType({})

    def make_target(self, folder, state="state", **settings):
        return make_target(folder, state, **self.settings, **settings)

    def make_foreign_target(self, folder):
        return self.make_target(folder, "other")

    async def read_volume(self, volume, length=-1):
        check(volume.path)
        data = content(volume.path)
        return data if length < 0 else data[:length]

    async def write_volume(self, volume, data):
        write_inside(volume.path, data)

    async def make_foreign_volume(self, folder, name, data):
        path = folder / f"{name}.qcow2"
        tool("qemu-img", "create", "-f", "qcow2", path, self.size)
        write_inside(path, data)

    @asynccontextmanager
    async def opening_midway(self, target, volume):
        with opened_before_rename(volume) as opener:
            yield
            assert opener.inode() == Path(volume.path).stat().st_ino


class TestConforms(OnQcow2, BlockTargetConformance):
    tries = 20


class TestStandaloneConforms(OnQcow2, BlockTargetConformance):
    settings = MappingProxyType({"clone": False})


class TestPreallocatedConforms(OnQcow2, BlockTargetConformance):
    settings = MappingProxyType({"preallocate": True})

    async def test_resize_grows_volume(self, tmp_path):
        """Only qemu-img can: the new part needs clusters."""
        target, volume = await self._resizable(tmp_path)
        with pytest.raises(ResizeError, match=r"preallocate = true, which only qemu-img can grow"):
            await target.resize("web01", 3 * self.size)
        assert await target.find("web01") == volume


class TestWithoutLeasesConforms(OnQcow2, BlockTargetConformance):
    @pytest.fixture(autouse=True)
    def _no_leases(self, monkeypatch):
        monkeypatch.setattr(holders, "_lease_refused", lambda fd: None)


class TestKeeps(OnQcow2, KeepingTargetConformance):
    pass


class TestClones(OnQcow2, CloneTargetConformance):
    async def remove_base(self, target, base):
        """Remove a base as an administrator would: its overlays get the data first."""
        folder = target._folder.path
        for path in folder.glob("*.qcow2"):
            tool("qemu-img", "rebase", "-f", "qcow2", "-b", "", path)
        (folder / ".lvp/backing" / base.name).unlink()


def test_kinds_of_targets(tmp_path):
    assert type(make_target(tmp_path)) is FileOverlayTarget
    assert type(make_target(tmp_path, clone=False)) is FileTarget
    assert type(make_target(tmp_path, preallocate=True)) is FileTarget
