"""Tests of named hosts and groups: what a list stands for, and with which credentials each host is asked."""

from __future__ import annotations

import pytest

from provisioner.cli.exit_status import CliError
from provisioner.cli.host_settings import resolve_hosts

FILE = """
token = "top"
url = "https://one.example.org:8080"

[hosts."kvm-[01-03]"]
url = "https://{host}.example.org:8080"

[hosts.kvm-02]
token = "own"

[hosts.lab]
cert = "lab.pem"

[groups]
a = ["kvm-[01-02]"]
b = ["a", "!kvm-01", "lab"]
everything = "*"
"""


@pytest.fixture
def resolve(tmp_path):
    """Return a function that resolves a list of hosts."""
    file = tmp_path / "lvp.toml"

    def resolve(text, flags=None, environ=None, content=FILE):
        file.write_text(content)
        return resolve_hosts(text, flags or {}, environ or {}, file)

    return resolve


def names(hosts):
    return [host.name for host in hosts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kvm-03", ["kvm-03"]),
        ("kvm-[03,01]", ["kvm-03", "kvm-01"]),
        ("a", ["kvm-01", "kvm-02"]),
        ("b", ["kvm-02", "lab"]),
        ("lab,a,kvm-01", ["lab", "kvm-01", "kvm-02"]),
        ("!kvm-02,a", ["kvm-01"]),
        ("*,!b", ["kvm-01", "kvm-03"]),
        ("everything", ["kvm-01", "kvm-02", "kvm-03", "lab"]),
        ("k?m-0*", ["kvm-01", "kvm-02", "kvm-03"]),
        ("https://x[1-2],lab", ["https://x1", "https://x2", "lab"]),
        ("unix:/run/a.sock", ["unix:/run/a.sock"]),
    ],
)
def test_list(resolve, text, expected):
    assert names(resolve(text)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kvm-04", "no host or group 'kvm-04'; did you mean"),
        ("zzz", "add it to lvp.toml, or give its address: https://zzz"),
        ("x*", "no host in the settings file matches 'x\\*'"),
        ("kvm-[1-", "without its other half"),
        ("a,!a", "leaves no host"),
        ("!nope,a", "no host or group 'nope'"),
        ("https://", "must look like"),
    ],
)
def test_list_invalid(resolve, text, words):
    with pytest.raises(CliError, match=words) as error:
        resolve(text)
    assert error.value.status == 2


def test_settings_of_hosts(resolve):
    """The nearest table counts most; the file's ``url`` is that of the one server."""
    first, second, lab = resolve("kvm-[01-02],lab")
    assert (first.settings.url, first.settings.token) == ("https://kvm-01.example.org:8080", "top")
    assert (second.settings.url, second.settings.token) == ("https://kvm-02.example.org:8080", "own")
    assert (lab.settings.url, str(lab.settings.cert)) == ("https://lab:8080", "lab.pem")


def test_environment_is_below_the_tables(resolve):
    """A token of the environment is not sent to a host with its own, and ``LVP_URL`` is not about hosts."""
    environ = {"LVP_URL": "https://other", "LVP_TOKEN": "environment"}
    hosts = resolve("kvm-[01-02]", environ=environ)
    assert [host.settings.token for host in hosts] == ["environment", "own"]
    assert hosts[0].settings.url == "https://kvm-01.example.org:8080"


def test_flags_are_above_the_tables(resolve):
    hosts = resolve("kvm-[01-02]", {"token": "flag"})
    assert [host.settings.token for host in hosts] == ["flag", "flag"]


def test_names_without_tables(resolve):
    """Without ``[hosts]`` a name is a DNS name."""
    hosts = resolve("a,b:9,http://c", content="")
    assert [host.settings.url for host in hosts] == ["https://a:8080", "https://b:9", "http://c"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("hosts = 1", "hosts must be a table"),
        ("[hosts]\na = 1", "hosts.a must be a table"),
        ("[hosts.a]\nurll = 'x'", "hosts.a: unknown key 'urll'"),
        ("[hosts.a]\nurl = 1", "hosts.a.url must be a non-empty string"),
        ("[hosts.'a,b']\n", "cannot be the name"),
        ("[hosts.'https://a']\n", "cannot be the name"),
        ("[hosts.'a[2-1]']\n", "ends before it begins"),
        ("[hosts.'a[1-2]']\n[hosts.'a[2-3]']\n", "two patterns in .hosts. stand for 'a2'"),
        ("[hosts.a]\n[groups]\na = ['a']", "a host and of a group"),
        ("[hosts.a]\n[groups]\nb = []", "must be a list of hosts"),
        ("[hosts.a]\n[groups]\nb = [1]", "must be a list of hosts"),
        ("[hosts.a]\n[groups]\nb = ['c']\nc = ['b']", "contains itself"),
        ("[hosts.a]\n[groups]\nb = ['nope']", "groups.b: .*no host or group 'nope'"),
        ("[groups]\n'b[1-2]' = ['a']", "must not be a pattern"),
        ("host = 'x'", "unknown key 'host'; did you mean 'hosts'"),
    ],
)
def test_file_invalid(resolve, content, words):
    with pytest.raises(CliError, match=words) as error:
        resolve("a", content=content)
    assert error.value.status == 2


def test_file_of_one_server_may_have_tables(run, home, server, monkeypatch):
    """Commands without ``--hosts`` work as ever beside hosts and groups."""
    server.on("GET", "/health", "HealthHealthy")
    (home / "config" / "lvp.toml").write_text(
        f'url = "{server.url}"\n{FILE.replace("url =", "#")}'.replace("token", "#")
    )
    assert run("health").status == 0


def test_one_host_by_name(run, home, server):
    server.on("GET", "/api/v1/targets", "TargetList")
    (home / "config" / "lvp.toml").write_text(f'[hosts.a]\nurl = "{server.url}"\ntoken = "t"\n[hosts.b]\n')
    assert run("target", "list", "--hosts", "a").status == 0
    assert server.requests[-1].headers["x-api-token"] == "t"
    several = run("--hosts", "a,b", "target", "list")
    assert several.status == 2
    assert "works on one host; 'a,b' stands for 2" in several.err
    both = run("--hosts", "a", "target", "list", "--url", server.url)
    assert (both.status, "exclude each other" in both.err) == (2, True)
    assert run("--hosts", "a", "plugins").status == 2
