"""Which configuration the commands on the host use, and that looking changes nothing."""

from __future__ import annotations

import os
import tomllib

import pytest

from provisioner.auth.tokens import TokenFile
from provisioner.cli import paths

CONFIG = """
state_directory = "{home}/state"
[server]
bind = ["127.0.0.1:0"]
[targets.disks]
plugin = "file"
directory = "{home}/disks"
"""


@pytest.fixture
def system_config(home):
    """The packaged configuration."""
    paths.SYSTEM_CONFIG.parent.mkdir()
    paths.SYSTEM_CONFIG.write_text(CONFIG.format(home=home))
    (home / "disks").mkdir()
    return paths.SYSTEM_CONFIG


@pytest.fixture
def served(monkeypatch):
    """What the daemon would have been run with."""
    calls = []
    monkeypatch.setattr("provisioner.daemon.run", lambda *args: calls.append(args) or 0)
    return calls


def everything_in(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def test_serve_uses_the_system_config(run, served, system_config, home):
    assert run("serve").status == 0
    ((config, read_again, file),) = served
    assert (config.state_directory, file) == (f"{home}/state", system_config)
    assert read_again() == config


@pytest.mark.parametrize("options", [["--data-dir", "{home}/d"], ["--bind", "127.0.0.1:9"], ["--allow-unverified"]])
def test_serve_options_exclude_the_system_config(run, served, system_config, home, options):
    run("serve", *(option.format(home=home) for option in options))
    ((config, _, file),) = served
    assert file is None
    assert "disks" not in config.targets


@pytest.mark.parametrize(
    "command", [["doctor"], ["recover"], ["token", "list"], ["token", "create", "ci"], ["config", "show"]]
)
def test_commands_use_the_system_config(run, system_config, home, command):
    (home / "state").mkdir()
    ended = run(*command)
    assert (ended.status, ended.err.splitlines()[0]) == (0, f"using {system_config}")


def test_config_check_uses_the_system_config(run, system_config):
    assert run("config", "check").out == f"{system_config}: no errors\n"


def test_config_check_without_a_file(run, home):
    ended = run("config", "check")
    assert ended.status == 2
    assert f"there is no {paths.SYSTEM_CONFIG}" in ended.err


def test_config_show_defaults(run, system_config):
    assert tomllib.loads(run("config", "show", "--defaults").out)["targets"].keys() == {"files"}
    assert run("config", "show", "--defaults", system_config).status == 2


def test_system_config_must_be_readable(run, system_config, monkeypatch):
    monkeypatch.setattr(paths, "SYSTEM_CONFIG", system_config.parent)  # root may read any file, but no folder
    monkeypatch.setattr(os, "access", lambda *_: False)
    ended = run("token", "list")
    assert ended.status == 1
    assert ended.err.rstrip().endswith("run the command as root, or choose another with --config")


def test_token_goes_where_the_system_config_says(run, system_config, home):
    run("token", "create", "ci")
    assert [record.name for record in TokenFile(home / "state" / "tokens.json").list()] == ["ci"]


def test_token_limits_are_checked_against_the_system_config(run, system_config, home):
    ended = run("token", "create", "ci", "--targets", "nowhere")
    assert ended.status == 1
    assert 'targets: found "nowhere", allowed: disks' in ended.err
    assert not (home / "state").exists()


@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize(
    "command",
    [
        ["doctor"],
        ["recover"],
        ["token", "list"],
        ["token", "revoke", "ci"],
        ["token", "rotate-key"],
        ["config", "check", "--host"],
        ["config", "show"],
    ],
)
def test_commands_change_nothing_on_a_fresh_host(run, home, request, monkeypatch, command, configured):
    monkeypatch.setattr("os.geteuid", lambda: 1000)  # the data directory is then in the home directory
    if configured:
        request.getfixturevalue("system_config")
    before = everything_in(home)
    ended = run(*command)
    assert everything_in(home) == before
    if not configured and command[:2] != ["config", "check"]:
        assert f"no {paths.SYSTEM_CONFIG}: using the data directory {home}/data" in ended.err


def test_token_create_needs_a_server(run, home, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    ended = run("token", "create", "ci")
    assert ended.status == 1
    assert "no server has run with" in ended.err
    assert not (home / "data").exists()


def test_recover_on_a_fresh_host(run, system_config, home):
    assert run("recover").out == f"{home}/state does not exist: no job has run, and nothing was left behind\n"


def test_explicit_files_are_not_announced(run, system_config, home):
    assert run("token", "list", "--config", system_config).err == ""
    assert run("token", "list", "--token-file", home / "t.json").err == ""
