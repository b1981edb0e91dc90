"""The catalog finds each publisher's newest image in listings and indexes of the publisher's form (``recorded/``)."""

import json
from pathlib import Path

import pytest

from provisioner import config, registry
from provisioner.contracts.testing import FakeSource
from provisioner.images import ImageResolver

CATALOG = Path(__file__).parents[3] / "contrib/catalog/catalog.toml"
RECORDED = Path(__file__).parent / "recorded"
NEWEST = json.loads((RECORDED / "newest.json").read_text())


@pytest.fixture
def settings(tmp_path):
    return config.embedded(tmp_path, "127.0.0.1:0", catalogs=[CATALOG])


def recorded_pages():
    pages = {}
    for file in RECORDED.rglob("*"):
        if file.is_file():
            path = file.relative_to(RECORDED).as_posix().removesuffix("index.html")
            pages[f"https://{path}"] = file.read_bytes()
    return pages


def test_every_image_has_a_recording(settings):
    assert sorted(settings.images) == sorted(NEWEST)


@pytest.mark.parametrize("name", NEWEST)
async def test_newest_image(settings, name):
    back_ends = registry.load().build(settings)
    recorded, asked = FakeSource(recorded_pages()), []

    def source_for(url):
        asked.append(back_ends.source_for(url))  # raises if the catalog's sources do not allow the url
        return recorded

    found = await ImageResolver(settings.images, source_for, tuple).resolve(name)
    wanted = NEWEST[name]
    assert (found.url.text, found.version) == (wanted["url"], wanted["version"])
    assert (found.checksum and found.checksum.hex) == ("a" * 64 if wanted["checksum"] else None)
    source_for(found.url)
    assert len(set(asked)) == 1, "index and image come from one source"
