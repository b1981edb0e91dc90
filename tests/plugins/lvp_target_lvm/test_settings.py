from __future__ import annotations

import msgspec
import pytest

from lvp_target_lvm import LvmSettings, ThinCloneTarget, ThinSettings, ThinTarget, lvp_block_targets
from provisioner.contracts import BackEndContext, CloneTarget, Duration


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"volume_group": "a b"}, "volume_group 'a b' is not a valid name"),
        ({"volume_group": ".."}, "not a valid name"),
        ({"size_tolerance_percent": 101.0}, "0 to 100"),
        ({"tool_path": "bin"}, "absolute"),
        ({"change_timeout": Duration(0)}, "at least 1s"),
        ({"pool": "a_tdata"}, "pool 'a_tdata' is not a valid name"),
        ({"max_bases": 0}, "max_bases"),
        ({"high_water_data_percent": 0.0}, "high_water_data_percent"),
        ({"high_water_metadata_percent": 101.0}, "high_water_metadata_percent"),
        ({"watch_interval": Duration(0)}, "watch_interval"),
        ({"replace": "maybe"}, "maybe"),
        ({"stale_data": "leave"}, "leave"),
        ({"volumegroup": "vg1"}, "unknown field"),
    ],
)
def test_settings_reject_invalid_values(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=why):
        msgspec.convert({"volume_group": "vg0", "pool": "pool", **wrong}, ThinSettings)


def test_settings_default_to_keeping_data_safe() -> None:
    settings = LvmSettings(volume_group="vg0")
    assert (settings.replace, settings.stale_data, settings.only_own) == ("swap", "zero", False)


def test_back_ends_with_and_without_clone(tmp_path: object) -> None:
    (_, thin) = lvp_block_targets()
    context = BackEndContext("pool1", tmp_path)  # type: ignore[arg-type]
    cloning = thin.create(ThinSettings(volume_group="vg0", pool="p"), context)
    plain = thin.create(ThinSettings(volume_group="vg0", pool="p", clone=False), context)
    assert isinstance(cloning, ThinCloneTarget)
    assert isinstance(plain, ThinTarget)
    assert not isinstance(plain, CloneTarget)
    assert (cloning.name, [back_end.name for back_end in lvp_block_targets()]) == ("pool1", ["lvm", "thin-lvm"])
