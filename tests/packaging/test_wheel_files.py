"""Tests which files a wheel contains, from the list that hatchling makes it of."""

from __future__ import annotations

from hatchling.builders.wheel import WheelBuilder

from tests.packaging.building import CHECKOUT


def test_wheel_has_the_page():
    """The page's files are no Python modules, so a change of the build could leave them out."""
    included = {file.distribution_path for file in WheelBuilder(str(CHECKOUT)).recurse_included_files()}
    files = {f"provisioner/api/static/{file.name}" for file in (CHECKOUT / "provisioner/api/static").iterdir()}
    assert "provisioner/api/static/index.html" in files
    assert files <= included
