"""Both targets pass what every block target must pass, on real volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from provisioner.contracts.testing import BlockTargetConformance
from tests.guest.lvm import lab

if TYPE_CHECKING:
    from pathlib import Path

    from provisioner.contracts import BlockTarget


class TestPlain(BlockTargetConformance):
    bad_names = (*BlockTargetConformance.bad_names, "snapshot1", "pvmove0", "a_tdata", "lvp.stage.1", "x" * 120)

    @pytest.fixture(autouse=True)
    def _empty(self, plain: str) -> None:
        self.group = plain

    def make_target(self, folder: Path) -> BlockTarget:
        return lab.plain_target(self.group)


class TestThin(BlockTargetConformance):
    @pytest.fixture(autouse=True)
    def _empty(self, thin: str) -> None:
        self.group = thin

    def make_target(self, folder: Path) -> BlockTarget:
        return lab.thin_target(self.group)
