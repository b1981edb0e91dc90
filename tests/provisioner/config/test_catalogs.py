"""Tests of named images in a configuration, and of catalogs: what they may contain, and which table wins."""

import pytest

from provisioner.config import Faults, decode, load
from provisioner.contracts.errors import ConfigError

CONFIG = """
catalogs = ["{folder}/one.toml", "{folder}/two.toml"]
[targets.main]
plugin = "file"
directory = "{folder}"
[images.own]
url = "https://images.example/own.qcow2"
[sources.web]
plugin = "http"
urls = ["https://images.example/"]
"""
CATALOG = """
[images.{name}]
url = "https://{name}.example/{{version}}.qcow2"
[sources.{name}]
plugin = "http"
urls = ["https://{name}.example/"]
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(CATALOG.format(name=name))
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path


def test_tables_of_all_catalogs(folder):
    config = load(folder / "config.toml")
    assert sorted(config.images) == ["one", "own", "two"]
    assert list(config.sources) == ["web", "one", "two"]  # the configuration's own sources are asked first


def test_own_table_wins(folder):
    (folder / "one.toml").write_text(CATALOG.format(name="own"))
    assert load(folder / "config.toml").images["own"].url == "https://images.example/own.qcow2"


@pytest.mark.parametrize(
    ("catalog", "message"),
    [
        ("[server]\nbind = []", "one.toml: server: unknown key; a catalog has only images and sources"),
        ("images = 5", "one.toml: images: allowed: tables such as"),
        ("[images", "one.toml is not valid TOML"),
        (CATALOG.format(name="two"), "two.toml: images.two: .*one.toml has a table of this name too"),
    ],
)
def test_invalid_catalog(folder, catalog, message):
    (folder / "one.toml").write_text(catalog)
    with pytest.raises(ConfigError, match=message):
        load(folder / "config.toml")


def test_missing_catalog(folder):
    (folder / "two.toml").unlink()
    with pytest.raises(ConfigError, match=r"two.toml: cannot be read: No such file"):
        load(folder / "config.toml")


def faults_of(image, name="a"):
    faults = Faults("")
    decode({"targets": {"main": {"plugin": "file"}}, "images": {name: image}}, faults)
    return faults.lines


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        ({}, "images.a: set exactly one of url, simplestreams and index"),
        ({"url": "https://x/y", "index": {"url": "https://x/i", "location": "/a"}}, "images.a: set exactly one of"),
        ({"url": "x"}, "images.a: url: it must be scheme://host/path"),
        ({"url": "https://{v}/y"}, "images.a: url: placeholders may only be in its path"),
        ({"url": "https://x/y?a={v}"}, "images.a: url: placeholders may only be in its path"),
        ({"url": "https://x/{v}", "match": {"w": "."}}, "images.a: match.w: url has no {w}"),
        ({"url": "https://x/{v}", "match": {"v": "("}}, "images.a: match.v is not a regular expression"),
        ({"url": "https://x/{v}", "match": {"v": "(a)"}}, "images.a: match.v must have no groups"),
        ({"url": "https://x/{v}", "checksum": "0" * 64}, "images.a: checksum needs a url without placeholders"),
        ({"url": "https://x/y", "checksum": "md5"}, "images.a: checksum must be 64"),
        ({"url": "https://x/y", "checksum_url": "https://x/{v}"}, "images.a: checksum_url: its placeholders must"),
        ({"url": "https://x/y", "checksum_url": "x"}, "images.a: checksum_url: it must be scheme://host/path"),
        ({"index": {"url": "https://x/y", "location": "a"}}, "images.a.index: location must be a JSON pointer"),
        ({"simplestreams": {"url": "https://x/y"}}, "images.a.simplestreams.base: is missing"),
    ],
)
def test_invalid_image(image, fault):
    assert any(line.startswith(fault) for line in faults_of(image)), faults_of(image)


@pytest.mark.parametrize("name", ["a b", "a/b", "", "-a", "x" * 65, "https://x"])
def test_invalid_name(name):
    (line,) = faults_of({"url": "https://x/y"}, name)
    assert "a name consists of letters" in line
