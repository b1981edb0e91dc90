"""A folder of images, and a source for it."""

from pathlib import Path

import pytest

from lvp_source_file import FileSettings, FileSource
from provisioner.contracts import BackEndContext


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def source(folder):
    return source_of(folder)


def source_of(*folders, **settings):
    given = FileSettings(folders=[str(folder) for folder in folders], **settings)
    return FileSource(given, BackEndContext("local", Path("/nowhere")))
