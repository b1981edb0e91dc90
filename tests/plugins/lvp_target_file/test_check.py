"""Tests of the check that the folder can be written, which ``/readyz`` uses."""

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


async def test_check_leaves_no_file(target, tmp_path):
    await target.check()
    assert list((tmp_path / "volumes").iterdir()) == []


async def test_check_full_disk(target, monkeypatch):
    def full(_folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lvp_target_file.folder.write_probe", full)
    with pytest.raises(TargetError, match="no space left to write to"):
        await target.check()


async def test_check_missing_folder(target, tmp_path):
    (tmp_path / "volumes").rmdir()
    with pytest.raises(TargetError):
        await target.check()
