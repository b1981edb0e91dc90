"""Whether the folder can be written now, as ``/readyz`` asks it."""

from __future__ import annotations

import pytest

from lvp_target_file import FileSettings, FileTarget
from provisioner.contracts import BackEndContext
from provisioner.contracts.errors import TargetError


@pytest.fixture
def target(tmp_path):
    (tmp_path / "volumes").mkdir()
    settings = FileSettings(directory=str(tmp_path / "volumes"))
    return FileTarget(settings, BackEndContext("files", tmp_path))


async def test_check_leaves_nothing(target, tmp_path):
    await target.check()
    assert list((tmp_path / "volumes").iterdir()) == []


async def test_check_of_a_full_disk(target, monkeypatch):
    def full(_folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lvp_target_file.folder.write_probe", full)
    with pytest.raises(TargetError, match="no space left to write into"):
        await target.check()


async def test_check_of_a_missing_folder(target, tmp_path):
    (tmp_path / "volumes").rmdir()
    with pytest.raises(TargetError):
        await target.check()
