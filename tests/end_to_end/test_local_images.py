"""Volumes from images in a folder of this host: the real daemon and its command line."""

import hashlib
import shutil

import pytest

from tests.end_to_end.conftest import same

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "local images"
    folder.mkdir()
    return folder


@pytest.fixture
def daemon(make_daemon, folder):
    daemon = make_daemon()
    daemon.config["sources"]["local"] = {"plugin": "file", "folders": [str(folder)]}
    return daemon.start()


def url_of(folder, name):
    return f"file://{folder}/{name}".replace(" ", "%20")


@pytest.mark.parametrize("name", ["zlib.qcow2", "sparse.raw"])
def test_volume_from_a_folder(daemon, folder, images, name):
    image = images[name]
    for suffix in ("", ".sha256"):
        shutil.copy(f"{image.file}{suffix}", folder)
    ended = daemon.lvp("job", "submit", "--type", image.kind, url_of(folder, name), "web", 1, "--wait")
    assert ended.status == 0, ended.err
    assert same(image, daemon.volume("web"))
    cached = next((daemon.folder / "state" / "cache").glob(f"*.{image.kind}"))
    assert (cached.stat().st_mode & 0o777, cached.read_bytes()) == (0o444, image.file.read_bytes())
    (folder / name).write_bytes(b"")  # the cache has a file of its own
    digest = f"sha256:{hashlib.sha256(image.file.read_bytes()).hexdigest()}"
    job = daemon.job_ended(daemon.submit(url_of(folder, name), "second", image.kind, checksum=digest))
    assert job["status"] == "completed"
    assert same(image, daemon.volume("second"))


def test_refusals_of_a_folder(daemon, folder, images, tmp_path):
    image = images["zlib.qcow2"].file.read_bytes()
    (tmp_path / "private.qcow2").write_bytes(image)
    (folder / "out.qcow2").symlink_to(tmp_path / "private.qcow2")
    (folder / "tampered.qcow2").write_bytes(image)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  tampered.qcow2\n")
    right = f"sha256:{hashlib.sha256(image).hexdigest()}"
    for name, checksum, words in (
        ("out.qcow2", right, "a symbolic link leads out of"),
        ("missing.qcow2", right, "no such file"),
        ("tampered.qcow2", None, "local%20images/SHA256SUMS"),
    ):
        more = {"checksum": checksum} if checksum else {}
        job = daemon.job_ended(daemon.submit(url_of(folder, name), "web", **more))
        assert (job["status"], words in job["error"]) == ("failed", True), job["error"]
    answer = daemon.call(
        "POST", "/api/v1/jobs", {"image_url": f"file://{tmp_path}/private.qcow2", "volume_name": "web"}
    )
    assert (answer.status_code, "belongs to no configured source" in answer.text) == (400, True)
    assert not list(daemon.volumes.glob("*.raw"))
