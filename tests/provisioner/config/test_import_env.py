"""Tests that an environment file is converted to a valid configuration without secrets."""

from __future__ import annotations

import tomllib

import pytest

from provisioner import registry
from provisioner.config import parse
from provisioner.config.import_env import import_env, parse_env
from provisioner.contracts.errors import ConfigError

WHOLE = """
# the old service
MINIO_ENDPOINT="minio.example.org:9000"
MINIO_USE_SSL=true
MINIO_ACCESS_KEY=provisioner
MINIO_SECRET_KEY='very secret'
export MINIO_BUCKET=images   # the only one
LVM_VOLUME_GROUP=vg0
IMAGE_CACHE_DIR=/srv/cache
HOST=0.0.0.0
PORT=8443
TLS_CERT=/etc/tls/server.pem
TLS_KEY=/etc/tls/server.key
TLS_CA=/etc/tls/ca.pem
API_TOKENS_FILE=/etc/tokens
LOG_LEVEL=WARN
MAX_CONCURRENT_JOBS=4
SOMETHING_ELSE=1
EMPTY=
"""


def write(tmp_path, text):
    path = tmp_path / "env"
    path.write_text(text)
    return path


def test_import_env_all_variables(tmp_path):
    made = import_env(write(tmp_path, WHOLE))
    assert tomllib.loads(made.toml) == {
        "server": {
            "bind": ["0.0.0.0:8443"],
            "tls_certificate": "/etc/tls/server.pem",
            "tls_key": "/etc/tls/server.key",
            "client_ca": "/etc/tls/ca.pem",
        },
        "jobs": {"max_concurrent": 4},
        "cache": {"directory": "/srv/cache"},
        "log": {"level": "warning"},
        "sources": {
            "minio": {
                "plugin": "minio",
                "endpoint": "https://minio.example.org:9000",
                "buckets": ["images"],
                "access_key": "file:/etc/libvirt-volume-provisioner/secrets/minio-access-key",
                "secret_key": "file:/etc/libvirt-volume-provisioner/secrets/minio-secret-key",
            }
        },
        "targets": {"vg0": {"plugin": "lvm", "volume_group": "vg0"}},
    }
    assert "very secret" not in made.toml + " ".join(made.to_do)
    assert "SOMETHING_ELSE was left out: it is unknown" in made.to_do
    assert any("lvp token create" in sentence for sentence in made.to_do)


def test_import_env_result_is_valid(tmp_path):
    made = import_env(write(tmp_path, WHOLE))
    registry.load().build(parse(tomllib.loads(made.toml), "test"))


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("MINIO_ENDPOINT=minio:9000", "https://minio:9000"),
        ("MINIO_ENDPOINT=minio:9000\nMINIO_USE_SSL=false", "http://minio:9000"),
        ("MINIO_ENDPOINT=https://minio.example.org/", "https://minio.example.org"),
    ],
)
def test_import_env_endpoint(tmp_path, text, endpoint):
    assert tomllib.loads(import_env(write(tmp_path, text)).toml)["sources"]["minio"]["endpoint"] == endpoint


def test_import_env_thin_pool(tmp_path):
    made = import_env(write(tmp_path, "LVM_VG=vg0\nLVM_THIN_POOL=thin"))
    assert tomllib.loads(made.toml)["targets"]["vg0"] == {"plugin": "thin-lvm", "volume_group": "vg0", "pool": "thin"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("PORT=eighty", "PORT was left out: eighty is not a number"),
        ("PORT=65536", "PORT was left out: 65536 is not a number"),
        ("MAX_CONCURRENT_JOBS=0", "MAX_CONCURRENT_JOBS was left out: 0"),
        ("LOG_LEVEL=loud", "LOG_LEVEL was left out: loud is not debug"),
        ("PORT=80", "listened on 0.0.0.0:80 without TLS"),
        ("HOST=10.0.0.1\nPORT=80", "listened on 10.0.0.1:80 without TLS"),
        ("LISTEN_ADDR=10.0.0.1\nHOST=10.0.0.2", "LISTEN_ADDR was left out: HOST says otherwise"),
        ("CLIENT_CA_CERT=/ca", "SERVER_CERT is missing; the old service then used /etc/ssl/certs/server.crt"),
        ("CLIENT_CA_CERT=/ca", "SERVER_KEY is missing; the old service then used /etc/ssl/private/server.key"),
        ("MINIO_SKIP_SSL_VERIFY=true", "certificate is always checked"),
        ("LVM_RETRY_ATTEMPTS=2", "LVM_RETRY_ATTEMPTS was left out: LVM commands are not repeated"),
        ("LVM_RETRY_BACKOFF_MS=100,1000", "LVM_RETRY_BACKOFF_MS was left out: LVM commands are not repeated"),
        ("MINIO_RETRY_BACKOFF_MS=100,1000", "MINIO_RETRY_BACKOFF_MS was left out: the pauses"),
        ("REQUEST_TIMEOUT=300s", "REQUEST_TIMEOUT was left out: "),
        ("API_TOKENS_FILE=/t", "the old ones stop working; create a new one"),
        ("MINIO_ENDPOINT=m\nMINIO_ACCESS_KEY=a", "MINIO_SECRET_KEY is missing"),
        ("MINIO_ACCESS_KEY=a", "MINIO_ENDPOINT is missing"),
        ("", "LVM_VOLUME_GROUP is missing"),
        ("DB_PATH=/var/lib/jobs.db", "history"),
    ],
)
def test_import_env_to_do(tmp_path, text, said):
    assert any(said in sentence for sentence in import_env(write(tmp_path, text)).to_do)


# Every variable of the older provisioner's example files and of its documentation, each with a value.
OLD_EXAMPLE = """
LISTEN_ADDR=127.0.0.1
PORT=8080
MINIO_ENDPOINT=https://minio.example.com
MINIO_ACCESS_KEY=your-access-key
MINIO_SECRET_KEY=your-secret-key
MINIO_REGION=us-east-1
MINIO_BUCKET=vm-images
MINIO_USE_SSL=true
MINIO_SKIP_SSL_VERIFY=true
MINIO_RETRY_ATTEMPTS=5
MINIO_RETRY_BACKOFF_MS=100,1000,10000
LVM_VOLUME_GROUP=vg0
LVM_RETRY_ATTEMPTS=3
LVM_RETRY_BACKOFF_MS=100,1000
CACHE_MAX_AGE=168h
CACHE_EVICTION_INTERVAL=1h
DB_PATH=/var/lib/libvirt-volume-provisioner/jobs.db
CLIENT_CA_CERT=/etc/ssl/certs/ca-certificates.crt
SERVER_CERT=/etc/ssl/certs/server.crt
SERVER_KEY=/etc/ssl/private/server.key
API_TOKENS_FILE=/etc/libvirt-volume-provisioner/tokens
LOG_LEVEL=info
LOG_FORMAT=json
MAX_CONCURRENT_JOBS=2
REQUEST_TIMEOUT=300s
OTEL_EXPORTER_OTLP_ENDPOINT=https://otel.example.com:4317
"""
NOT_IMPORTED = {
    "MINIO_SKIP_SSL_VERIFY", "MINIO_RETRY_BACKOFF_MS", "LVM_RETRY_ATTEMPTS", "LVM_RETRY_BACKOFF_MS", "CACHE_MAX_AGE",
    "CACHE_EVICTION_INTERVAL", "DB_PATH", "REQUEST_TIMEOUT", "OTEL_EXPORTER_OTLP_ENDPOINT",
}  # fmt: skip


def test_import_env_old_example(tmp_path):
    """Each line is imported or named on a line of its own."""
    made = import_env(write(tmp_path, OLD_EXAMPLE))
    document = tomllib.loads(made.toml)
    registry.load().build(parse(document, "test"))
    assert document["server"] == {
        "bind": ["127.0.0.1:8080"],
        "tls_certificate": "/etc/ssl/certs/server.crt",
        "tls_key": "/etc/ssl/private/server.key",
        "client_ca": "/etc/ssl/certs/ca-certificates.crt",
    }
    assert document["cache"] == {"download_attempts": 5}
    assert document["jobs"] == {"max_concurrent": 2}
    assert document["log"] == {"level": "info", "format": "json"}
    assert document["sources"]["minio"].keys() == {
        "plugin", "endpoint", "region", "buckets", "access_key", "secret_key",
    }  # fmt: skip
    left_out = {sentence.split()[0] for sentence in made.to_do if " was left out: " in sentence}
    assert left_out == NOT_IMPORTED
    assert sum("lvp token create" in sentence for sentence in made.to_do) == 1
    assert "your-" not in made.toml + " ".join(made.to_do)


def test_import_env_keeps_tls_reachable(tmp_path):
    """The older service listened on every address by default."""
    made = import_env(write(tmp_path, "CLIENT_CA_CERT=/ca\nSERVER_CERT=/c\nSERVER_KEY=/k"))
    assert tomllib.loads(made.toml)["server"]["bind"] == ["0.0.0.0:8080"]


@pytest.mark.parametrize("text", ["SERVER_CERT=/c", "TLS_CERT_FILE=/c\nPORT=443", "SERVER_KEY=/k"])
def test_import_env_refuses_half_tls(tmp_path, text):
    with pytest.raises(ConfigError, match="but not both; add SERVER_CERT and SERVER_KEY"):
        import_env(write(tmp_path, text))


def test_import_env_without_tls_is_local(tmp_path):
    made = import_env(write(tmp_path, "HOST=0.0.0.0\nPORT=8443\nLVM_VG=vg0"))
    assert parse(tomllib.loads(made.toml), "test").server.bind == ["127.0.0.1:8443"]


def test_parse_env_quoting():
    assert parse_env("A='x # y'\nB=x # y\nC=\"a\\\"b\"\nD=a' b'\n; E=no") == {
        "A": "x # y",
        "B": "x",
        "C": 'a"b',
        "D": "a b",
    }


@pytest.mark.parametrize(("text", "said"), [("A=1\nwhat?", "line 2 is no"), ("A='open", "line 1: No closing")])
def test_parse_env_invalid_file(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        import_env(write(tmp_path, text))


def test_import_env_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        import_env(tmp_path / "none")
