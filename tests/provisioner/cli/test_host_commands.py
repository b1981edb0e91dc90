"""Tests of the commands for the host: serve, config, token and plugins."""

from __future__ import annotations

import sys
import time
import tomllib
from types import ModuleType

import pytest

from provisioner.auth.tokens import TokenFile

CONFIG = """
state_directory = "{state}"
[log]
format = "json"
[targets.disks]
plugin = "file"
directory = "{state}/disks"
"""
PLUGIN = """
from provisioner.contracts import BackEnd, NoSettings, hookimpl

@hookimpl
def lvp_guards():
    return [BackEnd("watchdog", object, NoSettings)]
"""


@pytest.fixture
def config_file(home):
    file = home / "server.toml"
    file.write_text(CONFIG.format(state=home / "state"))
    return file


@pytest.fixture
def served(monkeypatch):
    """Replace the daemon; return the configurations it would have run with."""
    configs = []
    daemon = ModuleType("provisioner.daemon")
    daemon.run = lambda config, read_again=None, file=None: configs.append(config) or 7
    monkeypatch.setitem(sys.modules, "provisioner.daemon", daemon)
    return configs


def test_serve_without_config(run, served, home, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert run("serve") == (7, "", "")  # the daemon's exit status
    (config,) = served
    assert config.state_directory == str(home / "data" / "libvirt-volume-provisioner")
    assert config.server.bind == ["127.0.0.1:8080"]
    assert config.cache.require_checksum
    assert not any("example" in url for url in config.sources["http"]["urls"])


def test_serve_flags(run, served, home):
    prefixes = ["https://a.example/", "https://b.example/"]
    flags = [part for prefix in prefixes for part in ("--allow-source", prefix)]
    log = ["--log-format", "json", "--log-level", "debug"]
    run("serve", "--data-dir", home / "d", "--bind", "127.0.0.1:9", "--allow-unverified", *flags, *log)
    (config,) = served
    assert config.state_directory == str(home / "d")
    assert config.server.bind == ["127.0.0.1:9"]
    assert config.sources["http"]["urls"][-2:] == prefixes
    assert not config.cache.require_checksum
    assert (config.log.format, config.log.level) == ("json", "debug")


def test_serve_with_config_log_options(run, served, config_file):
    run("serve", "--config", config_file)
    run("serve", "--config", config_file, "--log-level", "error")
    assert [(config.log.format, config.log.level) for config in served] == [("json", "info"), ("json", "error")]


@pytest.mark.parametrize(
    "flag", [["--data-dir", "d"], ["--bind", "a:1"], ["--allow-source", "u"], ["--allow-unverified"]]
)
def test_serve_config_excludes_other_flags(run, served, config_file, flag):
    ended = run("serve", "--config", config_file, *flag)
    assert (ended.status, served) == (2, [])
    assert flag[0] in ended.err


def test_check_reports_each_error_on_a_line(run, config_file):
    config_file.write_text(config_file.read_text() + "[jobs]\nmax_concurrent = 0\nmax_quued = 3\n")
    ended = run("config", "check", config_file)
    assert ended.status == 1
    assert len(ended.err.splitlines()) == 2
    assert "jobs.max_quued: unknown key; did you mean 'max_queued'?" in ended.err


def test_check_missing_file(run, home):
    ended = run("config", "check", home / "none.toml")
    assert ended == (1, "", f"Error: {home / 'none.toml'}: cannot be read: No such file or directory\n")


def test_check_unknown_plugin(run, config_file):
    config_file.write_text(config_file.read_text().replace('plugin = "file"', 'plugin = "flie"'))
    ended = run("config", "check", config_file)
    assert ended.status == 1
    assert "targets.disks.plugin: no installed plugin provides 'flie'" in ended.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("CLIENT_CA_CERT=ca.pem", "server.client_ca: found "),
        ("LVM_VG=a/b", "targets.a/b: volume_group 'a/b' is not a valid name"),
        ("MINIO_ENDPOINT=https://m/path", "sources.minio: endpoint must be a URL such as"),
        ("SERVER_KEY=/k", "but not both; add SERVER_CERT and SERVER_KEY"),
    ],
)
def test_import_env_refuses_an_invalid_result(run, home, text, words):
    (home / "env").write_text(text)
    ended = run("config", "import-env", home / "env")
    assert (ended.status, ended.out) == (1, "")
    assert words in ended.err


def test_import_env_prints_what_is_left_to_do(run, home):
    (home / "env").write_text("PORT=8080\nMINIO_SKIP_SSL_VERIFY=1\n")
    ended = run("config", "import-env", home / "env")
    assert (ended.status, tomllib.loads(ended.out)) == (0, {"server": {"bind": ["127.0.0.1:8080"]}})
    assert "to do: MINIO_SKIP_SSL_VERIFY was left out: " in ended.err
    assert "to do: LVM_VOLUME_GROUP is missing" in ended.err


def test_show_output_is_valid_config(run, config_file):
    shown = run("config", "show", config_file)
    assert shown.status == 0
    assert tomllib.loads(shown.out)["log"] == {"format": "json", "level": "info"}
    config_file.write_text(shown.out)
    assert run("config", "show", config_file).out == shown.out


def test_show_without_file(run):
    assert "127.0.0.1:8080" in run("config", "show").out


def test_token_create_list_revoke(run, home):
    file = home / "tokens.json"
    made = run("token", "create", "ci", "--role", "viewer", "--expires", "2h", "--token-file", file)
    assert (made.status, made.err) == (0, "")
    token = made.out.strip()
    record = TokenFile(file).authenticate(token, time.time())
    assert (record.name, record.role) == ("ci", "viewer")
    assert record.expires_at - record.created_at == pytest.approx(7200, abs=60)
    listed = run("token", "list", "--token-file", file).out
    assert listed.splitlines()[1].split()[:2] == ["ci", "viewer"]
    assert token not in listed
    assert run("token", "revoke", "ci", "--token-file", file).status == 0
    assert TokenFile(file).authenticate(token, time.time()) is None


def test_token_defaults(run, home):
    run("token", "create", "ci", "--token-file", home / "tokens.json")
    (record,) = TokenFile(home / "tokens.json").list()
    assert (record.role, record.expires_at) == ("operator", None)


def test_token_file_from_config(run, config_file, home):
    run("token", "create", "ci", "--config", config_file)
    assert [record.name for record in TokenFile(home / "state" / "tokens.json").list()] == ["ci"]


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["revoke", "absent"], 1, "there is no token named absent"),
        (["create", "ci", "--expires", "soon"], 2, "'soon' is not a time span"),
        (["create", "ci", "--role", "king"], 2, "'king' is not one of"),
    ],
)
def test_token_errors(run, home, args, status, words):
    ended = run("token", *args, "--token-file", home / "tokens.json")
    assert ended.status == status
    assert words in ended.err


def test_token_file_not_writable(run, home):
    (home / "file").touch()
    ended = run("token", "create", "ci", "--token-file", home / "file" / "tokens.json")
    assert ended.status == 1
    assert ended.err.startswith(f"Error: {home / 'file'}")
    assert ended.err.count("\n") == 1


def test_plugins_show_package_and_version(run, home, monkeypatch):
    (home / "lvp_watchdog.py").write_text(PLUGIN)
    info = home / "lvp_watchdog-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lvp-watchdog\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text("[libvirt_volume_provisioner]\nwatchdog = lvp_watchdog\n")
    monkeypatch.syspath_prepend(home)
    ended = run("plugins")
    assert ended.status == 0
    assert ["guard", "watchdog", "lvp-watchdog", "2.1"] in [line.split() for line in ended.out.splitlines()]
