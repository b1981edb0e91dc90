# ruff: noqa: ASYNC240 - small files of a test
"""Tests of two installations that use one folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from lvp_target_file import FileSettings, FileTarget
from provisioner.contracts import BackEndContext
from provisioner.contracts.errors import TargetUnavailableError
from provisioner.contracts.testing import a_request

HOLD = """
import sys, trio
from pathlib import Path
from lvp_target_file import FileSettings, FileTarget
from provisioner.contracts import BackEndContext

async def main(folder, state):
    target = FileTarget(FileSettings(folder), BackEndContext("images", Path(state)))
    await target.recover(frozenset())
    print("held", flush=True)
    await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main, *sys.argv[1:])
"""


def make_target(folder, state, **options):
    return FileTarget(FileSettings(str(folder), **options), BackEndContext("images", state))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


async def test_second_installation_is_refused(folder, tmp_path):
    """Recovery and staging fail while the first runs. After it is killed, recovery works without a cleanup."""
    command = [sys.executable, "-c", HOLD, str(folder), str(tmp_path / "one")]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert first.stdout.readline() == "held\n"
    second = make_target(folder, tmp_path / "two")
    refusal = rf"in use by another installation \(process {first.pid} on .*, state directory {tmp_path}/one\)"
    with pytest.raises(TargetUnavailableError, match=refusal):
        await second.recover(frozenset())
    with pytest.raises(TargetUnavailableError, match=refusal):
        async with second.stage(a_request(), verified=True):
            raise AssertionError("another daemon uses the folder")
    (finding,) = [finding for finding in await second.diagnose() if not finding.ok]
    assert f"process {first.pid}" in finding.what
    assert "shared = true" in finding.fix
    assert [finding for finding in await make_target(folder, tmp_path / "one").diagnose() if not finding.ok] == []
    first.kill()
    first.communicate()
    assert list(await second.recover(frozenset())) == []


async def test_two_targets_of_one_installation(folder, tmp_path):
    first, second = make_target(folder, tmp_path / "one"), make_target(folder, tmp_path / "one")
    await first.recover(frozenset())
    await second.recover(frozenset())
    await first.aclose()
    other = make_target(folder, tmp_path / "two")
    with pytest.raises(TargetUnavailableError, match="another installation"):
        await other.recover(frozenset())
    await second.aclose()
    await other.recover(frozenset())


async def test_shared_folder(folder, tmp_path):
    one, two = (make_target(folder, tmp_path / name, shared=True) for name in ("one", "two"))
    async with one.stage(a_request(), verified=True) as staged:
        (sentence,) = await two.recover(frozenset())
        assert "left the staged volume web01 of job job-1 alone" in sentence
        assert [finding for finding in await two.diagnose() if not finding.ok] == []
        async with two.stage(a_request("web02"), verified=True) as other:
            await other.commit(None)
        await staged.commit(None)
    assert [volume.name for volume in await two.list()] == ["web01", "web02"]
    third = make_target(folder, tmp_path / "three")
    with pytest.raises(TargetUnavailableError, match="several that share it"):
        await third.recover(frozenset())


async def test_shared_folder_same_job_id(folder, tmp_path):
    """A copied state directory has the same job ids."""
    one, two = (make_target(folder, tmp_path / name, shared=True) for name in ("one", "two"))
    async with one.stage(a_request(), verified=True) as first, two.stage(a_request(), verified=True) as second:
        assert first.device.path != second.device.path


async def test_diagnose_lost_installation(folder, tmp_path):
    lost = make_target(folder, tmp_path / "lost")
    abandoned = lost.stage(a_request(), verified=True)
    await abandoned.__aenter__()
    await lost.aclose()
    target = make_target(folder, tmp_path / "new")
    (finding,) = [finding for finding in await target.diagnose() if not finding.ok]
    assert "1 staged volumes of another installation" in finding.what
    assert "lvp recover --take-over" in finding.fix
    assert not (tmp_path / "new").exists(), "a diagnosis changes nothing"
    await target.take_over()
    assert [finding for finding in await target.diagnose() if not finding.ok] == []
    await abandoned.__aexit__(None, None, None)


async def test_recover_missing_folder(tmp_path):
    """The recovery fails, because the folder may be mounted later with staged volumes in it."""
    with pytest.raises(TargetUnavailableError, match="missing"):
        await make_target(tmp_path / "not-mounted", tmp_path / "state").recover(frozenset())
    assert not (tmp_path / "not-mounted").exists()


async def test_recover_creates_and_claims_folder(tmp_path):
    target = make_target(tmp_path / "new", tmp_path / "state", make_directory=True)
    assert list(await target.recover(frozenset())) == []
    assert Path(tmp_path / "new" / ".lvp" / "lock").exists()
