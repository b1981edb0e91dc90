"""Runs the conformance suite of image sources against both object stores."""

from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from lvp_source_s3 import MinioSettings, S3Settings
from provisioner.contracts.testing import SourceConformance

pytestmark = pytest.mark.minio


class StoreConformance(SourceConformance):
    kind = S3Settings

    @pytest.fixture(autouse=True)
    def _running(self, running_store, source_of):
        self.store, self.source_of = running_store, source_of

    @asynccontextmanager
    async def serve(self, content):
        bucket, store = f"suite-{uuid4()}", self.store
        store.client().make_bucket(bucket)
        store.put(bucket, "image.qcow2", content)
        source = self.source_of(self.kind, store)
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
