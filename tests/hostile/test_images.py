"""Every hostile image through the API: its job fails with the reason and changes nothing."""

from __future__ import annotations

import re

import pytest

from tests.hostile.cases import CASES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_image(host, made, converter, case):
    if converter not in case.converters:
        return
    job = host.ask(host.serve(case.name, made(case)), case.declared)
    assert job["status"] == "failed", job
    assert re.search(case.words, job["error"]), job["error"]
    assert "volume" not in job
    host.check_unchanged()
