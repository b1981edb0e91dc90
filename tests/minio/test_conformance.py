"""The suite every image source must pass, against both object stores."""

from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from lvp_source_s3 import MinioSettings, S3Settings, S3Source
from provisioner.contracts import BackEndContext, SecretRef
from provisioner.contracts.testing import SourceConformance

pytestmark = pytest.mark.minio


class StoreConformance(SourceConformance):
    kind = S3Settings

    @pytest.fixture(autouse=True)
    def _running(self, running_store, tmp_path):
        self.store, self.keys = running_store, {}
        for name in ("access_key", "secret_key"):
            (tmp_path / name).write_text(getattr(running_store, name))
            self.keys[name] = SecretRef(f"file:{tmp_path}/{name}")

    @asynccontextmanager
    async def serve(self, content):
        bucket, store = f"suite-{uuid4()}", self.store
        store.client().make_bucket(bucket)
        store.put(bucket, "image.qcow2", content)
        settings = self.kind(endpoint=store.url, ca_file=str(store.ca_file), **self.keys)
        source = S3Source(settings, BackEndContext("lab", Path("/nowhere")))
        yield source, f"{store.url}/{bucket}/image.qcow2"
        await source.aclose()


class TestMinio(StoreConformance):
    kind = MinioSettings

    @pytest.fixture
    def running_store(self, store):
        return store


class TestVersity(StoreConformance):
    @pytest.fixture
    def running_store(self, gateway):
        return gateway
