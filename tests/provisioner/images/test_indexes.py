"""The newest image in simplestreams and other JSON indexes."""

import json

import pytest

from provisioner.config.images import JsonIndex, Simplestreams
from provisioner.contracts.errors import ImageError
from provisioner.images.indexes import in_json, in_simplestreams, pointed

DIGEST = "ab" * 32
STREAMS = Simplestreams(
    url="https://images.example/streams/v1/all.json",
    base="https://images.example/releases/",
    product="server:24.04:amd64",
    item="disk1.img",
)


def a_version(path, sha256=DIGEST):
    return {"items": {"disk1.img": {"path": path, "sha256": sha256, "ftype": "disk1.img"}, "tar": {"path": "x.tar"}}}


def streams(versions):
    return json.dumps({"products": {"server:24.04:amd64": {"versions": versions}}}).encode()


def test_newest_version_of_a_product():
    text = streams({"20260101": a_version("old.img"), "20260202": a_version("new.img"), "20260303": {"items": {}}})
    found = in_simplestreams(text, STREAMS)
    assert found == ("https://images.example/releases/new.img", DIGEST, "20260202")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"<html>", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "has no product"),
        (b'{"products": {"server:24.04:amd64": []}}', "has no product"),
        (streams({}), "has no item"),
        (streams({"20260101": {"items": {"disk1.img": {"path": 7}}}}), "has no item"),
        (streams({"20260101": "x"}), "has no item"),
    ],
)
def test_unusable_streams(text, message):
    with pytest.raises(ImageError, match=message):
        in_simplestreams(text, STREAMS)


def test_image_at_json_pointers():
    document = json.dumps({"a/b": [{"location": "x/y.qcow2", "sha256": DIGEST}]}).encode()
    settings = JsonIndex(
        url="https://images.example/i/index.json", location="/a~1b/0/location", checksum="/a~1b/0/sha256"
    )
    assert in_json(document, settings) == ("https://images.example/i/x/y.qcow2", DIGEST, None)


@pytest.mark.parametrize("document", [b"{}", b'{"a": 1}', b'{"a": {"url": 3}}', b"[1]"])
def test_pointer_to_nothing(document):
    with pytest.raises(ImageError, match="has no text at /a/url"):
        in_json(document, JsonIndex(url="https://images.example/", location="/a/url"))


def test_promised_checksum_is_missing():
    settings = JsonIndex(url="https://images.example/", location="/url", checksum="/sha256")
    with pytest.raises(ImageError, match="has no text at /sha256"):
        in_json(b'{"url": "https://images.example/a"}', settings)


def test_pointer_escapes():
    assert pointed({"m~n": {"": 8}}, "/m~0n/") == 8
    assert pointed([1, 2], "/-") is None
