import pytest

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
