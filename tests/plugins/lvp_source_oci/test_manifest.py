"""Tests which layer of a manifest is the disk image, and what is rejected."""

import hashlib
import json

import pytest

from lvp_source_oci.manifest import decoded, disk_layer, for_architecture
from provisioner.contracts.errors import SourceError

DIGEST = f"sha256:{'a' * 64}"
LAYER = {"digest": DIGEST, "size": 7, "mediaType": "application/vnd.oci.image.layer.v1.tar"}


def manifest(**fields):
    return decoded(json.dumps({"schemaVersion": 2, **fields}).encode(), "r/image:1", None)


def entry(architecture, os="linux"):
    return {**LAYER, "platform": {"os": os, "architecture": architecture}}


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"<html>", "no manifest"),
        (b"[]", "no manifest"),
        (b'{"schemaVersion": 1, "layers": []}', "schema 1"),
        (b'{"schemaVersion": 2, "layers": [], "manifests": []}', "either layers or manifests"),
        (b'{"schemaVersion": 2}', "either layers or manifests"),
    ],
)
def test_decoded_rejects(body, match):
    with pytest.raises(SourceError, match=match):
        decoded(body, "r/image:1", None)


def test_decoded_checks_digest():
    body = b'{"schemaVersion": 2, "layers": []}'
    decoded(body, "r/image:1", f"sha512:{hashlib.sha512(body).hexdigest()}")
    with pytest.raises(SourceError, match="another manifest"):
        decoded(body, "r/image:1", DIGEST)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([], "no layer"),
        ([LAYER, LAYER], r"2 layers"),
        ([{**LAYER, "size": 0}], "empty"),
        ([{**LAYER, "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"}], "media type"),
        ([{**LAYER, "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json"}], "media type"),
        ([{**LAYER, "mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip"}], "media type"),
    ],
)
def test_disk_layer_rejects(layers, match):
    with pytest.raises(SourceError, match=match):
        disk_layer(manifest(layers=layers), "r/image:1")


def test_weak_digest():
    layer = disk_layer(manifest(layers=[{**LAYER, "digest": "md5:" + "a" * 32}]), "r/image:1")
    with pytest.raises(SourceError, match="neither sha256 nor sha512"):
        _ = layer.checksum


def test_for_architecture():
    wanted = entry("arm64")
    index = manifest(manifests=[entry("unknown", "unknown"), entry("amd64"), wanted])
    assert for_architecture(index.manifests, "arm64", "r/image:1") is index.manifests[2]
    with pytest.raises(SourceError, match=r"no image for linux/s390x, only for linux/amd64, linux/arm64"):
        for_architecture(index.manifests, "s390x", "r/image:1")
    only = manifest(manifests=[LAYER])
    assert for_architecture(only.manifests, "s390x", "r/image:1") is only.manifests[0]
