"""Every hostile image through the API: its job fails and says why, and all is as it was before."""

from __future__ import annotations

import re

import pytest

from tests.hostile.rows import ROWS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_image_that_means_harm(host, made, converter, row):
    if converter not in row.converters:
        return
    job = host.ask(host.serve(row.name, made(row)), row.declared)
    assert job["status"] == "failed", job
    assert re.search(row.words, job["error"]), job["error"]
    assert "volume" not in job
    host.check_nothing_is_left()
