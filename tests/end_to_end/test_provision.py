"""Tests of ``lvp job submit --wait`` with valid and invalid images: the resulting volume, and that nothing is left."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.conftest import same
from tests.end_to_end.daemon import until

pytestmark = pytest.mark.slow
GOOD = ["zlib.qcow2", "zstd.qcow2", "plain.qcow2", "sparse.raw", "full.raw"]


def submit(daemon, url, name, kind="qcow2", *more):
    return daemon.lvp("job", "submit", url, name, 1, "--type", kind, "--wait", *more)


@pytest.mark.parametrize("converter", ["native", "qemu-img"])
def test_valid_images(make_daemon, server, images, converter):
    daemon = make_daemon(converters={"qcow2": converter}).start()
    for name in GOOD:
        image, volume = images[name], name.replace(".", "-")
        done = submit(daemon, server.of(name), volume, image.kind)
        assert done.status == 0, done
        assert same(image, daemon.volume(volume))
    assert server.fetched["zlib.qcow2"] == 1
    assert len([name for name in daemon.files() if name.startswith("volumes/")]) == len(GOOD)
    assert daemon.children() == []
    listed = json.loads(daemon.lvp("job", "list", "--json").out)
    assert [entry["status"] for entry in listed["jobs"]] == ["completed"] * len(GOOD)


def test_same_image_again_is_cached(daemon, server, images):
    for number in range(2):
        done = submit(daemon, server.of("zlib.qcow2"), f"web-{number}")
        assert done.status == 0, done
        assert same(images["zlib.qcow2"], daemon.volume(f"web-{number}"))
    assert server.fetched["zlib.qcow2"] == 1
    jobs = json.loads(daemon.lvp("job", "list", "--json").out)["jobs"]
    assert [job["cache_hit"] for job in jobs] == [True, False]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("wrong.qcow2", "qcow2", ("sha256", "expected")),
        ("large.qcow2", "qcow2", ("GiB",)),
        ("absent.qcow2", "qcow2", ("404",)),
        ("text.qcow2", "qcow2", ("HTML",)),
        ("disguised.raw", "raw", ("qcow2",)),
        ("cut.qcow2", "qcow2", ()),
        ("http://no-such-host.invalid/x.qcow2", "qcow2", ("no-such-host.invalid",)),
    ],
)
@pytest.mark.parametrize("converter", ["native", "qemu-img"])
def test_invalid_image_fails(make_daemon, server, name, kind, words, converter):
    daemon = make_daemon(converters={"qcow2": converter}).start()
    url = name if "://" in name else server.of(name)
    failed = submit(daemon, url, "web-01", kind)
    assert failed.status == 1, failed
    (job,) = json.loads(daemon.lvp("job", "list", "--json").out)["jobs"]
    assert job["status"] == "failed"
    assert job["error"] in failed.err
    assert "\n" not in job["error"]
    assert all(word in job["error"] for word in words), job["error"]
    assert "Traceback" not in failed.err
    assert_nothing_left(daemon)


def assert_nothing_left(daemon):
    until(lambda: not daemon.children())
    # A verified image stays in the cache, even if the job failed later.
    images = json.loads(daemon.lvp("cache", "list", "--json").out)["images"]
    cached = {entry["path"].rpartition("/d/")[2] for entry in images}
    assert daemon.files() == cached, images
    assert json.loads(daemon.lvp("volume", "list", "--json").out)["volumes"] == []


def test_wrong_checksum_in_request(daemon, server):
    failed = submit(daemon, server.of("zlib.qcow2"), "web-01", "qcow2", "--checksum", f"sha256:{64 * '1'}")
    assert failed.status == 1
    assert daemon.files() == set()


@pytest.mark.parametrize("name", ["a/b", "../a", "/etc/passwd", ".", "a\nb", "-x y", "x" * 300])
def test_invalid_volume_name(daemon, server, name):
    refused = daemon.lvp("job", "submit", "--wait", "--", server.of("zlib.qcow2"), name, 1)
    assert refused.status in {2, 4}, refused
    assert len(refused.err.strip().splitlines()) == 1, refused.err
    assert server.fetched == {}
    assert daemon.files() == set()


def test_failed_job_keeps_existing_volume(daemon, server, images):
    assert submit(daemon, server.of("full.raw"), "web-01", "raw").status == 0
    assert submit(daemon, server.of("wrong.qcow2"), "web-01").status == 1
    assert submit(daemon, server.of("large.qcow2"), "web-01").status == 1
    assert same(images["full.raw"], daemon.volume("web-01"))
    assert submit(daemon, server.of("zlib.qcow2"), "web-01").status == 0
    assert same(images["zlib.qcow2"], daemon.volume("web-01"))
