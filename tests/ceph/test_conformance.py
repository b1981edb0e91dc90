"""The conformance suites of block targets, run with the target ``rbd`` on a real cluster."""

from contextlib import asynccontextmanager

import pytest
import trio

from lvp_target_rbd import RbdCloneTarget
from provisioner.contracts.testing import BlockTargetConformance, CloneTargetConformance, KeepingTargetConformance
from tests.ceph.host import Place


class OnRbd:
    """How the suites see the images of the namespace that belongs to a test."""

    place: Place

    @pytest.fixture(autouse=True)
    def _place(self, ceph, tmp_path):
        self.place = Place(ceph, tmp_path / "place")

    async def read_volume(self, volume, length=-1):
        return await trio.to_thread.run_sync(self.place.read, volume.name, length)

    async def write_volume(self, volume, data):
        await trio.to_thread.run_sync(self.place.write, volume.name, data)

    async def is_staged(self, staged):
        return staged._staging.name in await trio.to_thread.run_sync(self.place.names)

    @asynccontextmanager
    async def holding_open(self, target, volume):
        with self.place.holding(volume.name):
            yield


class TestRbdTargetConforms(OnRbd, BlockTargetConformance):
    bad_names = (*BlockTargetConformance.bad_names, "a@b", "a:b", "a,b", "lvp.x")
    resizes_online = True

    def make_target(self, folder):
        return self.place.target()

    def make_foreign_target(self, folder):
        return self.place.target("other")

    @asynccontextmanager
    async def opening_midway(self, target, volume):
        # Between the look at the watchers and the rename.
        with self.place.opening_at(volume.name, "note", "after") as holders:
            yield
            assert holders, "the image was not opened midway"


class TestRbdTargetKeeps(OnRbd, KeepingTargetConformance):
    def make_target(self, folder, **settings):
        return self.place.target(**settings)

    async def make_foreign_volume(self, folder, name, data):
        await trio.to_thread.run_sync(self.place.write, name, data, self.size)


class TestRbdTargetClones(OnRbd, CloneTargetConformance):
    def make_target(self, folder):
        return self.place.target(make=RbdCloneTarget)

    def make_other_host(self, folder):
        return self.place.target("other", make=RbdCloneTarget)

    async def remove_base(self, target, base):
        await trio.to_thread.run_sync(self.place.remove_base, base.name)
