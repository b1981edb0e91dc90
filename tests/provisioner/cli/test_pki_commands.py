"""``lvp pki``: its output, where its files are, and that the lines it prints are valid configuration."""

from __future__ import annotations

import re
import tomllib

import pytest

from provisioner import config
from provisioner.cli import paths
from provisioner.cli.client_settings import resolve

DATE = r"20\d\d-\d\d-\d\d"


@pytest.fixture
def lvp_pki(run, home):
    def lvp_pki(*args):
        return run("pki", *args, "--dir", home / "pki")

    lvp_pki("init")
    return lvp_pki


def part(text, heading):
    """The lines below a heading in the output."""
    found = re.search(rf"^# On the {heading}, in [^\n]*\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1]


def test_init(run, home):
    first, second = (run("pki", "init", "--name", "our CA", "--days", "10", "--dir", home / "pki") for _ in range(2))
    assert (first.status, second.status) == (0, 0)
    files = rf"certificate: {home}/pki/ca.pem\nkey: {home}/pki/ca.key\n"
    assert re.fullmatch(rf"new CA our CA, valid until {DATE}\n{files}", first.out)
    assert re.fullmatch(rf"existing CA our CA, valid until {DATE}\n{files}", second.out)


def test_server_lines_are_valid_configuration(lvp_pki, home):
    ended = lvp_pki("server", "kvm-7.example.org", "192.0.2.7")
    assert re.match(
        rf"# new server certificate for kvm-7.example.org, 192.0.2.7, valid until {DATE}\n"
        "# On the server, in /etc/libvirt-volume-provisioner/config.toml:\n"
        r"\[server\]\n",
        ended.out,
    )
    pki = home / "pki"
    assert tomllib.loads(ended.out)["server"] == {
        "bind": ["0.0.0.0:8080"],
        "tls_certificate": f"{pki}/servers/kvm-7.example.org.pem",
        "tls_key": f"{pki}/servers/kvm-7.example.org.key",
        "client_ca": f"{pki}/ca.pem",
    }
    file = home / "config.toml"
    file.write_text(f'{ended.out}\n[targets.f]\nplugin = "file"\ndirectory = "/f"\n')
    config.load(file)


def test_client_lines_are_valid_settings(lvp_pki, home):
    lvp_pki("server", "::1")
    ended = lvp_pki("client", "me@example.org", "--role", "operator")
    grants = tomllib.loads(part(ended.out, "server"))["auth"]["certificates"]
    assert grants == {"me@example.org": {"role": "operator"}}
    file = home / "config" / "lvp.toml"
    file.write_text(part(ended.out, "client"))
    settings = resolve({}, {}, file)
    assert settings.url == "https://[::1]:8080"
    assert settings.ca == home / "pki" / "ca.pem"
    assert settings.cert == home / "pki" / "clients" / "me@example.org.pem"
    assert settings.key == home / "pki" / "clients" / "me@example.org.key"


def test_client_without_role(lvp_pki):
    out = lvp_pki("client", "ci").out
    assert "On the server" not in out
    assert 'url = "https://HOST:8080"' in out  # no server certificate yet


@pytest.mark.parametrize(
    ("servers", "host"),
    [([["*.example.org"]], "HOST"), ([["*.example.org", "kvm-7"]], "kvm-7"), ([["a"], ["b"]], "HOST")],
)
def test_client_address(lvp_pki, servers, host):
    for names in servers:
        lvp_pki("server", *names)
    assert f'url = "https://{host}:8080"' in lvp_pki("client", "ci").out


def test_show(lvp_pki, home):
    lvp_pki("server", "kvm-7.example.org", "192.0.2.7")
    lvp_pki("client", "ci", "--days", "1")
    header, *rows = lvp_pki("show").out.splitlines()
    assert header.split() == ["USE", "NAMES", "EXPIRES", "STATE", "SERIAL", "FILE"]
    columns = [re.split(r"  +", row) for row in rows]
    assert [(use, names) for use, names, *_ in columns[1:]] == [
        ("server", "kvm-7.example.org, 192.0.2.7"),
        ("client", "ci"),
    ]
    assert columns[0][0] == "CA"
    assert [state for _, _, _, state, _, _ in columns] == ["3649 days left", "396 days left", "0 days left"]
    assert columns[2][5] == f"{home}/pki/clients/ci.pem"
    config.AuthSettings(revoked_certificates=[f"serial:{columns[2][4]}"])


def test_errors_are_one_line(lvp_pki, run, home):
    for ended in (lvp_pki("client", "../x"), lvp_pki("server", "a b"), run("pki", "show", "--dir", home / "none")):
        assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert lvp_pki("server").status == 2


def test_default_folder(home, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert paths.pki_dir() == home / "data" / "libvirt-volume-provisioner" / "pki"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert str(paths.pki_dir()) == "/etc/libvirt-volume-provisioner/pki"
