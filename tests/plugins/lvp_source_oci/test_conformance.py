"""Runs the conformance suite of image sources against a real registry."""

from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from provisioner.contracts.testing import SourceConformance

pytestmark = pytest.mark.slow  # a real registry


class TestRegistry(SourceConformance):
    @pytest.fixture(autouse=True)
    def _registry(self, running, source_of):
        self.registry, self.source_of = running, source_of

    @asynccontextmanager
    async def serve(self, content):
        repository = f"suite-{uuid4()}"
        self.registry.push(repository, "v1", content)
        source = self.source_of(self.registry.host)
        yield source, f"oci://{self.registry.host}/{repository}:v1"
        await source.aclose()
