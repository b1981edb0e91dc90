# ruff: noqa: ASYNC240 - small files of a test
"""The conformance suite of block targets, run with the file target."""

from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lvp_target_file import FileSettings, FileTarget, holders
from provisioner.contracts import BackEndContext
from provisioner.contracts.testing import BlockTargetConformance, KeepingTargetConformance
from tests.plugins.lvp_target_file.openers import opened_before_rename


class FileTargetConformance(BlockTargetConformance):
    tries = 20
    preallocate = False

    def make_target(self, folder, state="state"):
        settings = FileSettings(str(folder), preallocate=self.preallocate)
        return FileTarget(settings, BackEndContext("images", folder / ".lvp" / state))

    def make_foreign_target(self, folder):
        return self.make_target(folder, "other")

    @asynccontextmanager
    async def opening_midway(self, target, volume):
        with opened_before_rename(volume) as opener:
            yield
            assert opener.inode() == Path(volume.path).stat().st_ino, (
                "the opener does not have the volume that was kept"
            )


class TestFileTargetConforms(FileTargetConformance):
    pass


class TestPreallocatingFileTargetConforms(FileTargetConformance):
    preallocate = True


class TestWithoutLeasesConforms(FileTargetConformance):
    """A filesystem without leases, or a file of another user without CAP_LEASE."""

    @pytest.fixture(autouse=True)
    def _no_leases(self, monkeypatch):
        monkeypatch.setattr(holders, "_lease_refused", lambda fd: None)


class TestFileTargetKeeps(KeepingTargetConformance):
    def make_target(self, folder, **settings):
        return FileTarget(FileSettings(str(folder), **settings), BackEndContext("images", folder / ".lvp" / "state"))

    async def make_foreign_volume(self, folder, name, data):
        (folder / f"{name}.raw").write_bytes(data.ljust(self.size, b"\0"))
