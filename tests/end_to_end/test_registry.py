"""Volumes from an OCI registry: the real daemon, a real registry, ORAS artifacts and a containerDisk."""

import gzip

import pytest

from tests.end_to_end.conftest import same
from tests.servers.oci_registry import container_disk, registry

pytestmark = pytest.mark.slow


def test_volume_from_a_registry(make_daemon, images, tmp_path):
    daemon, image = make_daemon(), images["zlib.qcow2"]
    content = image.file.read_bytes()
    layers = {"plain": content, "packed": gzip.compress(content, 1), "container-disk": container_disk(content)}
    with registry(tmp_path) as server:
        daemon.config["sources"]["registry"] = {"plugin": "oci", "registries": [server.host], "plain_http": True}
        daemon.start()
        for name, layer in layers.items():
            server.push("team/debian", name, layer)
            ended = daemon.lvp("job", "submit", f"oci://{server.host}/team/debian:{name}", name, 1, "--wait")
            assert ended.status == 0, ended.err
            assert same(image, daemon.volume(name))
