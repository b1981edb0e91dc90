"""A volume by the name of its image: the real daemon with a catalog, and a publisher as nginx lists it."""

import pytest
import tomli_w

from tests.end_to_end.conftest import same, vouch
from tests.end_to_end.daemon import until
from tests.servers.nginx import nginx

pytestmark = pytest.mark.slow


@pytest.fixture
def publisher(images, tmp_path):
    """Serve two releases of an image and a candidate; yield the url of the listed folder and the newest release."""
    for version, name in (("9", "plain.qcow2"), ("10", "zlib.qcow2"), ("11-rc1", "plain.qcow2")):
        folder = tmp_path / "pub" / version
        folder.mkdir(parents=True)
        file = folder / f"debian-{version}.qcow2"
        file.write_bytes(images[name].file.read_bytes())
        vouch(file)
    with nginx(tmp_path / "pub", tmp_path / "nginx") as server:
        yield f"{server.url}/listed/", images["zlib.qcow2"]


def test_volume_by_name(make_daemon, publisher, tmp_path):
    url, image = publisher
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        tomli_w.dumps(
            {
                "images": {"debian": {"url": url + "{version}/debian-{version}.qcow2", "description": "Debian"}},
                "sources": {"debian": {"plugin": "http", "urls": [url]}},
            }
        )
    )
    daemon = make_daemon()
    daemon.config["catalogs"] = [str(catalog)]
    daemon.start()
    assert daemon.lvp("image", "list").out.split()[-3:] == ["debian", "qcow2", "Debian"]
    ended = daemon.lvp("job", "submit", "debian", "web-01", 1, "--wait")
    assert ended.status == 0, ended.err
    (job,) = daemon.call("GET", "/api/v1/jobs").json()["jobs"]
    assert (job["image_url"], job["request"]["image"]) == (f"{url}10/debian-10.qcow2", "debian")
    assert same(image, daemon.volume("web-01"))


def test_prewarm_by_name(make_daemon, publisher):
    """The newest image is fetched at the start, and pinned, also after a restart."""
    url, _ = publisher
    daemon = make_daemon()
    daemon.config["images"] = {"debian": {"url": url + "{version}/debian-{version}.qcow2"}}
    daemon.config["cache"]["prewarm"] = [{"image": "debian"}]
    daemon.start()
    (job,) = until(lambda: daemon.call("GET", "/api/v1/jobs?status=completed").json()["jobs"])
    assert (job["image_url"], job["request"]["image"]) == (f"{url}10/debian-10.qcow2", "debian")
    assert (job["submitted_by"], job["request"]["priority"]) == ("prewarm", -1000)
    (cached,) = daemon.call("GET", "/api/v1/cache/images").json()["images"]
    assert (cached["url"], cached["pinned"]) == (f"{url}10/debian-10.qcow2", True)
    daemon.stop()
    daemon.start()
    assert until(lambda: daemon.call("GET", "/api/v1/cache/images").json()["images"][0]["pinned"])


def test_catalog_without_a_source(make_daemon, tmp_path):
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(tomli_w.dumps({"images": {"debian": {"url": "https://images.example/{version}.qcow2"}}}))
    daemon = make_daemon()
    daemon.config["catalogs"] = [str(catalog)]
    daemon.launch()
    status, said = daemon.ended()
    assert status != 0
    assert "images.debian.url: https://images.example/0.qcow2 belongs to no configured source" in said
