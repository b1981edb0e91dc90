from __future__ import annotations

import pytest

from lvp_target_lvm import ThinSettings
from lvp_target_lvm.diagnostics import judge_pool
from tests.plugins.lvp_target_lvm.cases import a_pool

SETTINGS = ThinSettings(volume_group="vg0", pool="pool")


def test_judge_pool_without_problems() -> None:
    assert [finding.what for finding in judge_pool(SETTINGS, a_pool(), "100") if not finding.ok] == []


@pytest.mark.parametrize(
    ("wrong", "threshold", "fix"),
    [
        ({"data_percent": 95.0}, "100", "lvextend -L"),
        ({"zero": False}, "100", "lvchange -Zy vg0/pool"),
        ({"discards": "ignore"}, "100", "--discards passdown vg0/pool"),
        ({"error_when_full": False}, "100", "--errorwhenfull y vg0/pool"),
        ({}, "70", "high_water_data_percent (now 90) to at most 70"),
    ],
)
def test_judge_pool_names_the_fix(wrong: dict[str, object], threshold: str, fix: str) -> None:
    (finding,) = [finding for finding in judge_pool(SETTINGS, a_pool(**wrong), threshold) if not finding.ok]
    assert fix in finding.fix
