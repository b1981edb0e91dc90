import pytest

from lvp_source_s3 import S3Source
from provisioner.contracts import BackEndContext, SecretRef
from tests.minio.server import minio, versity


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    with minio(tmp_path_factory.mktemp("minio")) as running:
        yield running


@pytest.fixture(scope="session")
def other_store(tmp_path_factory):
    with minio(tmp_path_factory.mktemp("minio")) as running:
        yield running


@pytest.fixture(scope="session")
def gateway(tmp_path_factory):
    with versity(tmp_path_factory.mktemp("versity"), "s3.example.com") as running:
        yield running


@pytest.fixture
def source_of(tmp_path):
    """Return a function that makes a source for a store, by default with the owner's keys."""

    def make(kind, store, access_key=None, secret_key=None, name="lab", **settings):
        keys = {"access_key": access_key or store.access_key, "secret_key": secret_key or store.secret_key}
        refs = {}
        for key, text in keys.items():
            path = tmp_path / f"{name}-{key}-{text[:4]}"
            path.write_text(f"{text}\n")
            refs[key] = SecretRef(f"file:{path}")
        table = {"endpoint": store.url, "ca_file": str(store.ca_file), **refs, **settings}
        return S3Source(kind(**table), BackEndContext(name, tmp_path))

    return make
