"""Tests which registry, repository and manifest a URL names."""

from dataclasses import replace

import pytest

from lvp_source_oci import OciSettings, OciSource
from lvp_source_oci.reference import parse, pinned_url
from provisioner.contracts import BackEndContext, ImageUrl
from provisioner.contracts.errors import SourceError

DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("oci://ghcr.io/example/debian:12", "ghcr.io/example/debian:12"),
        ("docker://ghcr.io:5000/debian", "ghcr.io:5000/debian:latest"),
        (f"oci://ghcr.io/debian@{DIGEST}", f"ghcr.io/debian@{DIGEST}"),
        (f"oci://ghcr.io/debian:12@{DIGEST}", f"ghcr.io/debian@{DIGEST}"),
        ("docker://docker.io/debian:12", "docker.io/library/debian:12"),
        ("docker://index.docker.io/example/debian:12", "docker.io/example/debian:12"),
    ],
)
def test_parse(url, name):
    assert str(parse(ImageUrl.parse(url))) == name


@pytest.mark.parametrize(
    "path", ["Debian:12", "debian:", "debian:a/b", "debian@sha256:12", "debian@md5:aa", "a//b:1", "", "debian:1?x=1"]
)
def test_parse_rejects(path):
    with pytest.raises(SourceError, match="is invalid"):
        parse(ImageUrl.parse(f"oci://ghcr.io/{path}"))


@pytest.mark.parametrize("path", ["b", "b:12", "a/b:12", "localhost/a/b"])
@pytest.mark.parametrize("host", ["ghcr.io", "127.0.0.1:5000", "docker.io"])
def test_pinned_url(host, path):
    url, digest = ImageUrl.parse(f"oci://{host}/{path}"), f"sha256:{'0' * 64}"
    pinned = pinned_url(url, digest)
    assert parse(pinned) == replace(parse(url), manifest=digest)
    assert pinned.text == f"oci://{host}/{path.removesuffix(':12')}@{digest}"


def test_docker_hub_api():
    reference = parse(ImageUrl.parse("docker://docker.io/debian:12"))
    assert reference.manifest_url("https", "12") == "https://registry-1.docker.io/v2/library/debian/manifests/12"


@pytest.mark.parametrize(
    ("registry", "url", "owned"),
    [
        ("ghcr.io", "oci://ghcr.io/a/b:1", True),
        ("ghcr.io", "oci://ghcr.io:443/a/b:1", True),
        ("ghcr.io", "oci://ghcr.io:444/a/b:1", False),
        ("ghcr.io", "https://ghcr.io/a/b", False),
        ("ghcr.io/a", "oci://ghcr.io/a/b:1", True),
        ("ghcr.io/a/b", "docker://ghcr.io/a/b:1", True),
        ("ghcr.io/a", "oci://ghcr.io/ab/c:1", False),
        ("registry-1.docker.io", "docker://docker.io/debian", True),
        ("docker.io/library", "docker://docker.io/debian", True),
        ("*.example.org", "oci://a.example.org/b", True),
        ("*.example.org", "oci://example.org.evil/b", False),
    ],
)
def test_owns(registry, url, owned, tmp_path):
    source = OciSource(OciSettings(registries=[registry]), BackEndContext("lab", tmp_path))
    assert source.owns(ImageUrl.parse(url)) is owned
