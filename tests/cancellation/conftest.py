"""Where the jobs of these tests work: in memory where the system has that, for each waits for the disk many times."""

import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path):
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)
