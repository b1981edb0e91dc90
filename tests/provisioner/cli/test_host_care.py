"""Tests of ``lvp doctor`` and ``lvp recover`` on a real folder of volumes."""

import pytest

from provisioner.linux import state_lock

CONFIG = """
state_directory = "{state}"
[targets.disks]
plugin = "file"
directory = "{state}/disks"
"""


@pytest.fixture
def config_file(home):
    file = home / "server.toml"
    file.write_text(CONFIG.format(state=home / "state"))
    (home / "state").mkdir()
    return file


def test_doctor_with_missing_folder(run, config_file, home):
    status, out, err = run("doctor", "--config", str(config_file))
    assert status == 1
    assert f"BAD  {home}/state/disks is not a folder\n       -> create it" in out
    assert "1 problem found" in err


def test_doctor_without_problems(run, config_file, home):
    (home / "state" / "disks").mkdir()
    status, out, _ = run("doctor", "--config", str(config_file))
    assert status == 0
    assert out.endswith("no problems found\n")
    assert "target disks:" in out


def test_doctor_with_readable_token_file(run, config_file, home):
    (home / "state" / "disks").mkdir()
    tokens = home / "state" / "tokens.json"
    tokens.write_text("{}")
    tokens.chmod(0o644)
    status, out, _ = run("doctor", "--config", str(config_file))
    assert status == 1
    assert f"-> chmod 600 {tokens}" in out


def test_doctor_without_config(run, home):
    status, out, _ = run("doctor", "--data-dir", str(home / "new"))
    assert status == 0
    assert "?    " in out
    assert "the daemon creates it at its start" in out
    assert not (home / "new").exists()


def test_recover_removes_staged_volume(run, config_file, home):
    stage = home / "state" / "disks" / ".lvp" / "stage"
    stage.mkdir(parents=True)
    (stage / "4711.web-01").write_bytes(b"half")
    status, out, _ = run("recover", "--config", str(config_file))
    assert (status, out) == (0, "disks: removed the staged volume web-01 of job 4711\n")
    assert list(stage.iterdir()) == []
    assert run("recover", "--config", str(config_file))[1] == "disks: nothing was left behind\n"


def test_recover_spares_other_installation(run, config_file, home):
    stage = home / "state" / "disks" / ".lvp" / "stage"
    stage.mkdir(parents=True)
    (stage / "@ffffffffffff.4711.web-01").write_bytes(b"half")
    command = ("recover", "--config", str(config_file))
    left = "left the staged volume web-01 of job 4711 alone: it belongs to another installation (ffffffffffff)"
    assert run(*command)[1] == f"disks: {left}\n"
    assert run(*command, "--take-over")[1] == "disks: removed the staged volume web-01 of job 4711\n"
    assert list(stage.iterdir()) == []


def test_recover_while_daemon_runs(run, config_file, home):
    with state_lock.locked(home / "state"):
        status, _, err = run("recover", "--config", str(config_file))
    assert status == 1
    assert "another instance" in err


@pytest.mark.parametrize("command", ["doctor", "recover"])
def test_config_and_data_dir_together(run, command):
    status, _, err = run(command, "--config", "a", "--data-dir", "b")
    assert status == 2
    assert "not both" in err
