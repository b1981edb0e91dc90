"""Tests of the configuration: every error is reported with its place and what is allowed; dumps can be loaded."""

import contextlib
import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.config import CacheSettings, Config, dump, embedded, load, parse
from provisioner.contracts.errors import ConfigError

TARGET = {"targets": {"main": {"plugin": "lvm"}}}
SIZES = 'a size such as "10GiB" (units B, KiB, MiB, GiB, TiB)'
ROLES = '"viewer", "operator", "admin"'
PATHS = 'an absolute path, such as "/srv/images"'
TIMES = 'a time span such as "30s" (units ms, s, m, h, d)'


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"targets": {}}, "targets: is missing; allowed: at least one table such as [targets.main] with plugin ="),
        ({"targets": {"a": {}}}, "targets.a.plugin: is missing; allowed: a plugin's name"),
        ({"targets": []}, "targets: found [], allowed: a table"),
        ({"targets": {"a": 5}}, "targets.a: found 5, allowed: a table"),
        ({"targets": {"a": {"plugin": "x", "default": 1}}}, "targets.a.default: found 1, allowed: true or false"),
        (
            {"targets": {"a": {"plugin": "x", "default": True}, "b": {"plugin": "x", "default": True}}},
            "targets: found default = true in a, b, allowed: in one",
        ),
        ({"sources": {"x": {"plugin": 3}}}, "sources.x.plugin: found 3, allowed: a plugin's name"),
        ({"converters": {"raw": 5}}, "converters.raw: found 5, allowed: a string or a table"),
        ({"converters": {"raw": {"n": 2}}}, "converters.raw: found {\"n\":2}, allowed: a plugin's name or a table"),
        ({"targetz": {}}, "targetz: unknown key; did you mean 'targets'?"),
        ({"jobs": {"max_concurent": 2}}, "jobs.max_concurent: unknown key; did you mean 'max_concurrent'?"),
        ({"log": {"x": 1}}, "log.x: unknown key; allowed: format, level"),
        ({"jobs": 5}, "jobs: found 5, allowed: a table"),
        ({"jobs": {"max_concurrent": 0}}, "jobs.max_concurrent: found 0, allowed: a whole number >= 1"),
        ({"jobs": {"max_concurrent": "2"}}, 'jobs.max_concurrent: found "2", allowed: a whole number'),
        ({"jobs": {"max_concurrent": True}}, "jobs.max_concurrent: found true, allowed: a whole number"),
        ({"jobs": {"on_restart": "maybe"}}, 'jobs.on_restart: found "maybe", allowed: "retry", "fail"'),
        ({"jobs": {"shutdown_grace": "soon"}}, f'jobs.shutdown_grace: found "soon", allowed: {TIMES}'),
        ({"cache": {"max_size": "10GB"}}, f'cache.max_size: found "10GB", allowed: {SIZES}'),
        ({"cache": {"max_size": -1}}, f"cache.max_size: found -1, allowed: {SIZES}"),
        ({"cache": {"directory": 5}}, "cache.directory: found 5, allowed: an absolute path"),
        ({"cache": {"prewarm": {"url": "x"}}}, 'cache.prewarm: found {"url":"x"}, allowed: a list'),
        ({"cache": {"prewarm": [{}]}}, "cache.prewarm[0]: set either url or image"),
        ({"cache": {"prewarm": [{"url": "https://x/y", "every": 1}]}}, "cache.prewarm[0]: every must be at least 1m"),
        ({"auth": {"certificate_roles": {"x": "y"}}}, f'auth.certificate_roles.x: found "y", allowed: {ROLES}'),
        ({"auth": {"default_certificate_role": "y"}}, f'auth.default_certificate_role: found "y", allowed: {ROLES}'),
        (
            {"auth": {"certificates": {"ci": {"role": "operator", "targets": ["man"]}}}},
            'auth.certificates.ci.targets: found "man", allowed: main',
        ),
        (
            {"auth": {"certificates": {"ci": {"role": "operator", "sources": ["web"]}}}},
            'auth.certificates.ci.sources: found "web", allowed: nothing',
        ),
        (
            {"auth": {"certificates": {"ci": {"role": "operator", "sources": ["https://u:p@x/"]}}}},
            "auth.certificates.ci: sources: 'https://...@x/' is not a URL prefix",
        ),
        (
            {"auth": {"certificates": {"ci": {"role": "operator", "volumes": []}}}},
            "auth.certificates.ci: volumes must name at least one; leave it out for no limit",
        ),
        ({"auth": {"certificates": {"ci": {}}}}, "auth.certificates.ci.role: is missing; allowed:"),
        (
            {"auth": {"certificates": {"ci": {"role": "viewer"}}, "certificate_roles": {"ci": "admin"}}},
            "auth: ci is in certificate_roles and in certificates",
        ),
        ({"auth": {"revoked_certificates": ["0a"]}}, "auth: revoked_certificates: '0a' is neither"),
        ({"server": {"client_crl": "/c"}}, "server: client_crl needs client_ca"),
        ({"server": {"bind": "x"}}, 'server.bind: found "x", allowed: a list'),
        ({"server": {"bind": ["[::1]:80", 5]}}, "server.bind[1]: found 5, allowed: a string"),
        ({"server": {"bind": []}}, "server: bind must name at least one address"),
        ({"server": {"bind": ["nowhere"]}}, "server: 'nowhere' is not an address"),
        ({"server": {"bind": ["127.0.0.1:65536"]}}, "server: '127.0.0.1:65536' is not an address"),
        ({"server": {"bind": ["0.0.0.0:80"]}}, "server: 0.0.0.0:80 would be served over plain HTTP"),
        ({"server": {"tls_key": "/k"}}, "server: tls_certificate and tls_key must be set together"),
        ({"server": {"client_ca": "/c"}}, "server: client_ca needs tls_certificate and tls_key"),
        ({"server": {"client_certificate": "required"}}, 'server: client_certificate = "required" needs client_ca'),
        ({"state_directory": "state"}, f'state_directory: found "state", allowed: {PATHS}'),
        ({"cache": {"directory": "../x"}}, f'cache.directory: found "../x", allowed: {PATHS}'),
        ({"audit": {"file": "audit.log"}}, f'audit.file: found "audit.log", allowed: {PATHS}'),
        ({"auth": {"token_file": "t.json"}}, f"auth.token_file: found a string (not shown), allowed: {PATHS}"),
        ({"cache": {"prewarm": [{"url": "web/x.img"}]}}, "cache.prewarm[0]: url: it must be scheme://host/path"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)  # fmt: skip
def test_parse_error_message(document, line):
    with pytest.raises(ConfigError) as caught:
        parse({**TARGET, **document}, "/etc/x.toml")
    (said,) = caught.value.message.splitlines()
    assert said.startswith(f"/etc/x.toml: {line}")


def test_parse_reports_all_errors():
    """A user can fix all errors at once."""
    document = {
        "jobs": {"a": 1, "max_queued": 0},
        "cache": {"min_free": "x"},
        "log": {"level": "loud"},
        "zzz": 1,
        **TARGET,
    }
    with pytest.raises(ConfigError) as caught:
        parse(document, "f")
    assert sorted(line.split(": ")[1] for line in caught.value.message.splitlines()) == [
        "cache.min_free", "jobs.a", "jobs.max_queued", "log.level", "zzz",
    ]  # fmt: skip


def test_parse_reports_faults_of_one_table():
    """Faults of single keys hide neither each other nor what is wrong between keys of the same table."""
    server = {"bind": ["nowhere", "0.0.0.0:80"], "max_bodi": 1, "client_crl": "/crl", "max_connections": 0}
    auth = {"certificates": {"ci": {"role": "operator", "targets": ["man"], "max_jobs": 0}}}
    document = {"server": server, "auth": auth, "targets": {"main": {"plugin": 5}, "b": {"plugin": "x", "default": 1}}}
    with pytest.raises(ConfigError) as caught:
        parse(document, "f")
    said = caught.value.message
    assert len(said.splitlines()) == 9
    for words in (
        "server.max_bodi: unknown key",
        "server.max_connections: found 0",
        "server: 'nowhere' is not an address",
        "server: 0.0.0.0:80 would be served over plain HTTP",
        "server: client_crl needs client_ca",
        "auth.certificates.ci.max_jobs: found 0",
        'auth.certificates.ci.targets: found "man"',
        "targets.main.plugin: found 5",
        "targets.b.default: found 1",
    ):
        assert words in said


def test_parse_wrong_value_hides_its_consequences():
    """A certificate that is misspelt or no path is not also reported as missing."""
    for server in ({"tls_certficate": "/c", "tls_key": "/k"}, {"tls_certificate": "c.pem", "tls_key": "/k"}):
        with pytest.raises(ConfigError) as caught:
            parse({**TARGET, "server": server}, "f")
        assert len(caught.value.message.splitlines()) == 1


@pytest.mark.parametrize(
    "document",
    [
        {"auth": {"token_key": "hunter2"}},
        {"auth": {"token_key": ["hunter2"]}},
        {"auth": {"token_key": {"x": "hunter2"}}},
        {"auth": {"tokn_key": "hunter2"}},
        {"server": {"tls_key": "-----BEGIN PRIVATE KEY-----hunter2"}},
        {"server": {"tls_certificate": "-----BEGIN PRIVATE KEY-----hunter2"}},
        {"sources": [{"plugin": "http", "password": "hunter2"}]},
        {"sources": {"x": {"password": "hunter2"}}},
        {"targets": {"x": [{"api_key": "hunter2"}]}},
        {"converters": {"raw": {"password": "hunter2"}}},
        {"cache": {"prewarm": {"url": "https://user:hunter2@x/y?X-Amz-Signature=hunter2"}}},
        {"cache": {"prewarm": [{"url": "https://user:hunter2@x/y?sig=hunter2"}]}},
        {"auth": {"certificates": {"ci": {"role": "viewer", "sources": ["https://u:hunter2@x/"]}}}},
    ],
)  # fmt: skip
def test_parse_never_shows_a_secret(document):
    with pytest.raises(ConfigError) as caught:
        parse({**TARGET, **document}, "f")
    assert "hunter2" not in caught.value.message


def test_parse_long_value_is_truncated():
    with pytest.raises(ConfigError, match=r'found "x{50,60}\.\.\., allowed'):
        parse({**TARGET, "jobs": {"max_queued": "x" * 1000}}, "f")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[server", "is not valid TOML"),
        (b"\xff\xfe", "is not valid UTF-8 (byte 0)"),
        (None, "cannot be read: No such file"),
    ],
)
def test_load_unreadable_file(tmp_path, content, words):
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(path) in caught.value.message
    assert words in caught.value.message


def test_parse_defaults():
    config = parse(TARGET, "f")
    assert config == Config(targets=TARGET["targets"])
    assert config.cache_directory == "/var/lib/libvirt-volume-provisioner/cache"
    assert config.database.endswith("/jobs.sqlite")


FULL = {
    "state_directory": "/srv/lvp",
    "server": {"bind": ["0.0.0.0:8443", "unix:/run/x"], "tls_certificate": "/c", "tls_key": "/k", "max_body": "1MiB"},
    "auth": {"certificate_roles": {"web": "viewer"}, "open_metrics": False},
    "jobs": {"max_concurrent": 7, "shutdown_grace": "90s", "keep_history": 1.5},
    "cache": {"max_size": "3TiB", "min_free": 1234, "prewarm": [{"url": "https://x/y", "every": "2h"}]},
    "sources": {"s": {"plugin": "http", "urls": ["https://x/"], "password": "file:/p"}},
    "converters": {"raw": "native", "qcow2": {"plugin": "native", "threads": 3}},
    "targets": {"a": {"plugin": "lvm", "volume_group": "vg0", "default": True}, "b": {"plugin": "file"}},
}


def test_dump_round_trip():
    config = parse(FULL, "f")
    assert parse(tomllib.loads(dump(config)), "again") == config


@given(st.integers(1, 99), st.integers(0, 2**60), st.floats(0, 1e7, allow_nan=False).map(lambda value: round(value, 3)))
def test_sizes_and_durations_round_trip(count, size, seconds):
    """All sizes and durations are written so that they are read back the same."""
    wanted = {"jobs": {"max_concurrent": count, "shutdown_grace": seconds}, "cache": {"max_size": size}}
    config = parse({**FULL, **wanted}, "f")
    again = parse(tomllib.loads(dump(config)), "again")
    assert (again.jobs.max_concurrent, again.cache.max_size) == (count, size)
    assert again.jobs.shutdown_grace == pytest.approx(seconds, abs=1e-6)


def test_dump_hides_secrets():
    config = parse({**TARGET, "sources": {"s": {"plugin": "x", "token": "abc", "password": "env:P", "n": [1]}}}, "f")
    text = dump(config)
    assert "abc" not in text
    assert "env:P" in text


def test_dump_hides_secrets_in_urls():
    uri = "qemu+ssh://user@host/system?socket=/run/x"
    prewarm = [{"url": "https://x/y?X-Amz-Signature=hunter2"}]
    tables = {"guards": {"g": {"plugin": "x", "uri": uri, "web": "https://u:hunter2@x/"}}}
    text = dump(parse({**TARGET, **tables, "cache": {"prewarm": prewarm}}, "f"))
    assert "hunter2" not in text
    assert uri in text
    assert 'url = "https://x/y"' in text


def test_embedded_is_valid_and_local(tmp_path):
    config = embedded(tmp_path, "127.0.0.1:0", ["https://images.example.com/"])
    assert config.sources["http"]["urls"][-1] == "https://images.example.com/"
    assert config.state_directory == str(tmp_path)
    with pytest.raises(ConfigError, match="not a URL prefix"):
        embedded(tmp_path, "127.0.0.1:0", ["nonsense"])


def test_config_is_frozen():
    with pytest.raises(AttributeError):
        CacheSettings().max_size = 5


def documents():
    """Yield documents with a value of every TOML type in place of every section and every key."""
    values = [1, -1, 1.5, True, "", "x", [], [1], {}, {"x": 1}, tomllib.loads("d = 2024-01-01")["d"]]
    for section in msgspec.structs.fields(Config):
        keys = getattr(section.type, "__struct_fields__", ("k",))
        for value in values:
            yield {section.name: value}
            yield from ({section.name: {key: value}} for key in keys)


def test_parse_any_type_anywhere():
    """Every document results in a Config or a ConfigError."""
    for document in documents():
        with contextlib.suppress(ConfigError):
            assert isinstance(parse({**TARGET, **document}, "f"), Config)
