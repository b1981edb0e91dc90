"""Tests of the client's settings, server and credentials: precedence, errors, TLS."""

from __future__ import annotations

import ssl

import pytest
import trustme

from provisioner.cli.client_settings import ENVIRONMENT, ClientSettings, resolve
from provisioner.cli.exit_status import CliError


@pytest.fixture
def file(home):
    return home / "config" / "lvp.toml"


def test_resolve_precedence(file):
    file.write_text('url = "https://file:1"\ntoken = "file"\nca = "file.pem"\n')
    environ = {"LVP_URL": "https://environment:1", "LVP_TOKEN": "environment"}
    found = resolve({"url": "https://flag:1"}, environ, file)
    assert (found.url, found.token, str(found.ca)) == ("https://flag:1", "environment", "file.pem")


def test_resolve_token_file_flag_wins(file, home):
    (home / "token").write_text("from-file\n")
    assert resolve({"token_file": "~/token"}, {"LVP_TOKEN": "environment"}, file).token == "from-file"


def test_resolve_certificate_with_its_key(file):
    found = resolve({"cert": "flag.pem"}, {"LVP_CERT": "env.pem", "LVP_KEY": "env.key"}, file)
    assert (str(found.cert), found.key) == ("flag.pem", None)


def test_resolve_defaults(file):
    assert resolve({}, {}, file) == ClientSettings("http://127.0.0.1:8080")


def test_resolve_token_of_local_server(file, home, monkeypatch):
    monkeypatch.setattr("provisioner.cli.paths.data_dir", lambda: home)
    (home / "client-token").write_text("own\n")
    assert resolve({}, {}, file).token == "own"
    assert resolve({"url": "https://elsewhere:8080"}, {}, file).token is None
    assert resolve({"token": "other"}, {}, file).token == "other"


@pytest.mark.parametrize("url", ["https://h:1", "https://h:1/", "https://h:1/api/v1", "https://h:1/api/v1/"])
def test_resolve_url_forms(file, url):
    assert resolve({"url": url}, {}, file).url == "https://h:1"


@pytest.mark.parametrize("url", ["unix:/run/lvp.sock", "unix:///run/lvp.sock"])
def test_resolve_unix_socket(file, home, monkeypatch, url):
    """It counts as a server of this machine: no proxy, and the token that lvp serve left."""
    monkeypatch.setattr("provisioner.cli.paths.data_dir", lambda: home)
    (home / "client-token").write_text("own\n")
    settings = resolve({"url": url}, {}, file)
    assert (settings.url, settings.token, settings.loopback) == ("unix:/run/lvp.sock", "own", True)


@pytest.mark.parametrize("url", ["unix:", "unix:lvp.sock", "unix:/", "unix://host/lvp.sock", "unix://"])
def test_resolve_invalid_unix_socket(file, url):
    with pytest.raises(CliError, match=r"must look like unix:/PATH"):
        resolve({"url": url}, {}, file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('tokn = "x"', "unknown key 'tokn'; did you mean 'token'?"),
        ("colour = 1", f"unknown key 'colour'; allowed: {', '.join(ENVIRONMENT)}"),
        ("url = 8080", "url must be a non-empty string"),
        ("url = ", "is not valid TOML"),
        ('url = "https://host:port"', "must look like https://HOST:8080"),
        ('url = "host:8080"', "must look like https://HOST:8080"),
        ('token = "a"\ntoken_file = "b"', "remove one"),
        ('token_file = "/nowhere"', "token file /nowhere cannot be read: No such file or directory"),
        ('key = "k.pem"', "needs its certificate"),
    ],
)
def test_invalid_settings_file(file, run, text, words):
    file.write_text(text)
    ended = run("job", "list")
    assert ended.status == 2
    assert words in ended.err
    assert ended.err.count("\n") == 1


def test_resolve_invalid_token_file(file, home):
    (home / "token").write_text("two words\n")
    with pytest.raises(CliError, match="one token and nothing else"):
        resolve({"token_file": str(home / "token")}, {}, file)


def test_exposes_token_over_plain_http():
    assert ClientSettings("http://kvm-7:8080", token="x").exposes_token
    assert not ClientSettings("http://127.0.0.1:8080", token="x").exposes_token
    assert not ClientSettings("https://kvm-7:8080", token="x").exposes_token


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def tls_server(server, authority):
    """Run the server with TLS and require a client certificate of the CA."""
    server.stop()
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.minimum_version = ssl.TLSVersion.TLSv1_2
    authority.issue_cert("localhost").configure_cert(server.tls)
    authority.configure_trust(server.tls)
    server.tls.verify_mode = ssl.CERT_REQUIRED
    server.start()
    server.on("GET", "/health", "HealthHealthy")
    return server


def test_mutual_tls(tls_server, authority, run, home):
    authority.cert_pem.write_to_path(home / "ca.pem")
    authority.issue_cert("me").private_key_and_cert_chain_pem.write_to_path(home / "me.pem")
    ended = run("health", "--url", tls_server.url, "--ca", home / "ca.pem", "--cert", home / "me.pem")
    assert ended == (0, "healthy, version 1.0.0, up 2h30m45s\n", "")


def test_server_with_unknown_ca(tls_server, run):
    ended = run("health", "--url", tls_server.url)
    assert ended.status == 5
    assert "is not trusted" in ended.err
    assert "--ca" in ended.err
    assert ended.err.count("\n") == 1
    assert tls_server.requests == []


def test_missing_client_certificate(tls_server, authority, run, home):
    authority.cert_pem.write_to_path(home / "ca.pem")
    ended = run("health", "--url", tls_server.url, "--ca", home / "ca.pem")
    assert ended.status == 5
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(("option", "words"), [("--ca", "CA file"), ("--cert", "certificate")])
@pytest.mark.parametrize("content", [None, "no pem"])
def test_unusable_pem_files(run, home, option, words, content):
    broken = home / "broken.pem"
    if content is not None:
        broken.write_text(content)
    ended = run("health", "--url", "https://localhost:1", option, broken)
    assert ended.status == 2
    assert words in ended.err
    assert str(broken) in ended.err
    assert ended.err.count("\n") == 1
