"""The conformance suite of image sources, with a folder on this machine's disk."""

from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lvp_source_file import FileSettings, FileSource
from provisioner.contracts import BackEndContext
from provisioner.contracts.testing import SourceConformance


class TestFolder(SourceConformance):
    foreign_url = "file:///srv/elsewhere/image.qcow2"

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path / "images"
        self.folder.mkdir()

    @asynccontextmanager
    async def serve(self, content):
        (self.folder / "image.qcow2").write_bytes(content)
        source = FileSource(FileSettings(folders=[str(self.folder)]), BackEndContext("local", Path("/nowhere")))
        yield source, f"file://{self.folder}/image.qcow2"
        await source.aclose()
