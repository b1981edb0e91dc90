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
    assert "SOMETHING_ELSE is unknown and was left out" in made.to_do
    assert any("lvp token create" in sentence for sentence in made.to_do)


def test_import_env_result_is_valid(tmp_path):
    made = import_env(write(tmp_path, WHOLE))
    registry.load().build(parse(tomllib.loads(made.toml), "test"))


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("MINIO_ENDPOINT=minio:9000", "http://minio:9000"),
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
        ("PORT=eighty", "PORT=eighty is not a number"),
        ("TLS_CERT=/a", "TLS was left out"),
        ("MINIO_ACCESS_KEY=a", "MINIO_ENDPOINT is missing"),
        ("", "LVM_VOLUME_GROUP is missing"),
        ("DB_PATH=/var/lib/jobs.db", "history"),
    ],
)
def test_import_env_to_do(tmp_path, text, said):
    assert any(said in sentence for sentence in import_env(write(tmp_path, text)).to_do)


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
