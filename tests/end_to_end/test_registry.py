"""Volumes from an OCI registry: the real daemon, a real registry, images pushed as ORAS artifacts."""

import pytest

from tests.end_to_end.conftest import same
from tests.servers.oci_registry import registry

pytestmark = pytest.mark.slow


def test_volume_from_a_registry(make_daemon, images, tmp_path):
    daemon = make_daemon()
    with registry(tmp_path) as server:
        daemon.config["sources"]["registry"] = {"plugin": "oci", "registries": [server.host], "plain_http": True}
        daemon.start()
        for name in ("zlib.qcow2", "plain.qcow2"):
            image = images[name]
            server.push("team/debian", name, image.file.read_bytes(), title=name)
            url = f"oci://{server.host}/team/debian:{name}"
            volume = f"from-{name.partition('.')[0]}"
            ended = daemon.lvp("job", "submit", "--type", image.kind, url, volume, 1, "--wait")
            assert ended.status == 0, ended.err
            assert same(image, daemon.volume(volume))
