"""The real daemon with qcow2 volumes: overlays of bases on any file system, and volumes that stand alone."""

from __future__ import annotations

import json

import pytest

from provisioner.auth.tokens import TokenFile
from tests.end_to_end.conftest import qemu_img
from tests.end_to_end.daemon import until
from tests.servers.seeds import files_of

pytestmark = pytest.mark.slow  # a real daemon


def table(daemon_folder, **more):
    return {
        "plugin": "file",
        "directory": str(daemon_folder),
        "make_directory": True,
        "overcommit": True,
        "format": "qcow2",
        **more,
    }


@pytest.fixture
def volumes(tmp_path):
    return tmp_path / "volumes-here"


def same(image, volume):
    """Check a volume with QEMU's tools: its tables, and that it has the image's content followed by zeros."""
    qemu_img("check", "-f", "qcow2", volume)
    qemu_img("compare", "-f", image.kind, "-F", "qcow2", image.file, volume)
    assert json.loads(qemu_img("info", "--output=json", "-f", "qcow2", volume))["virtual-size"] == 2**30
    return True


def backing_of(volume):
    found = json.loads(qemu_img("info", "--output=json", "-f", "qcow2", volume))
    return found.get("backing-filename"), found.get("backing-filename-format")


def made(daemon, server, image, name, kind="qcow2", **more):
    job = daemon.job_ended(daemon.submit(server.of(image), name, kind, **more))
    assert job["status"] == "completed", job
    return job


def test_killed_while_the_base_is_made(volumes, make_daemon, server, images):
    """The half base goes at the next start; the job makes a whole one, and others refer to it."""
    daemon = make_daemon(targets={"files": table(volumes)}).start()
    server.held = {"plain.qcow2": 20 * 2**20}
    first = daemon.submit(server.of("plain.qcow2"), "web-01")
    assert server.holding.wait(60)
    until(lambda: [path for path in (volumes / ".lvp/stage").glob("*base-*") if path.stat().st_blocks > 2**14])
    assert list((volumes / ".lvp").glob("backing/*")) == []
    daemon.kill()
    server.let_go.set()
    daemon.start()
    jobs = [daemon.job_ended(job_id) for job_id in (first, daemon.submit(server.of("plain.qcow2"), "web-02"))]
    assert [(job["status"], job["volume"]["provisioned_by"]) for job in jobs] == [("completed", "clone")] * 2
    assert [job["volume"]["path"] for job in jobs] == [str(volumes / f"{name}.qcow2") for name in ("web-01", "web-02")]
    assert all(same(images["plain.qcow2"], volumes / f"{name}.qcow2") for name in ("web-01", "web-02"))
    assert list((volumes / ".lvp/stage").iterdir()) == []
    (base,) = (volumes / ".lvp/backing").iterdir()
    assert backing_of(volumes / "web-01.qcow2") == (str(base), "raw")
    planned = daemon.lvp("job", "submit", server.of("plain.qcow2"), "web-03", "1", "--dry-run")
    assert "by clone" in planned.out, planned
    found = daemon.lvp("doctor", "--config", daemon.folder / "config.toml")
    assert "are qcow2 overlays of bases; 1 bases of at most 20" in found.out, found


@pytest.mark.parametrize("name", ["zlib.qcow2", "plain.qcow2", "sparse.raw", "full.raw"])
@pytest.mark.parametrize("clone", [True, False], ids=["overlay", "alone"])
def test_volume_of_each_image(volumes, make_daemon, server, images, name, clone):
    daemon = make_daemon(targets={"files": table(volumes, clone=clone)}).start()
    job = made(daemon, server, name, "web-01", images[name].kind)
    assert job["volume"]["provisioned_by"] == ("clone" if clone else "copy")
    assert same(images[name], volumes / "web-01.qcow2")
    assert (backing_of(volumes / "web-01.qcow2") == (None, None)) is not clone
    assert daemon.children() == []


def test_life_of_a_volume(volumes, make_daemon, server, images):
    """Replace, keep, restore, grow and remove volumes; the base stays until the last file that refers to it is gone."""
    options = {"keep_replaced": "1h", "max_bases": 1}
    daemon = make_daemon(targets={"files": table(volumes, **options)}).start()
    token = TokenFile(daemon.folder / "state" / "tokens.json").create("admin", "admin")
    (daemon.folder / "client-token").write_text(token)
    made(daemon, server, "zlib.qcow2", "web-01")
    (base,) = (volumes / ".lvp/backing").iterdir()
    qemu_img("bench", "-c", "1", "-w", "--pattern=7", "-s", "65536", "-f", "qcow2", volumes / "web-01.qcow2")
    made(daemon, server, "plain.qcow2", "web-01")
    assert len(list((volumes / ".lvp/backing").iterdir())) == 2
    assert base.exists()
    assert same(images["plain.qcow2"], volumes / "web-01.qcow2")
    daemon.kill()
    daemon.start()
    assert daemon.lvp("volume", "restore", "files", "web-01").status == 0
    assert backing_of(volumes / "web-01.qcow2") == (str(base), "raw")
    qemu_img("check", "-f", "qcow2", volumes / "web-01.qcow2")
    grown = daemon.lvp("volume", "resize", "files", "web-01", "3")
    assert grown.status == 0, grown
    assert json.loads(qemu_img("info", "--output=json", volumes / "web-01.qcow2"))["virtual-size"] == 3 * 2**30
    listed = daemon.call("GET", "/api/v1/volumes").json()["volumes"]
    assert [(one["name"], one["path"]) for one in listed] == [("web-01", str(volumes / "web-01.qcow2"))]
    made(daemon, server, "zstd.qcow2", "web-02")
    assert base.exists()
    assert daemon.lvp("volume", "remove", "files", "web-01", "--yes").status == 0
    made(daemon, server, "sparse.raw", "web-03", "raw")
    assert not base.exists()
    assert same(images["zstd.qcow2"], volumes / "web-02.qcow2")


def test_seed_is_a_qcow2_file(volumes, make_daemon, server, images, tmp_path):
    daemon = make_daemon(targets={"files": table(volumes)}).start()
    made(daemon, server, "zlib.qcow2", "web-01", cloud_init={"user_data": "#cloud-config\n"})
    assert same(images["zlib.qcow2"], volumes / "web-01.qcow2")
    seed = volumes / "web-01-seed.qcow2"
    qemu_img("check", "-f", "qcow2", seed)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", seed, tmp_path / "seed.iso")
    assert "user-data" in files_of(tmp_path / "seed.iso", "-R")
