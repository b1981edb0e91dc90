"""The module ``volume``: it makes what is missing, leaves the rest alone, and replaces nothing unasked."""

from __future__ import annotations

import hashlib

from tests.contents import first_bytes
from tests.end_to_end.conftest import same

GIB = 2**30


def volume(server, **options):
    return {"image_url": server.of("zlib.qcow2"), "name": "web-01", "size_gb": 1, **options}


def test_second_run_changes_nothing(ansible, daemon, server, images):
    tasks = [
        {"name": "one", "lvp.provisioner.volume": volume(server)},
        {"name": "other", "lvp.provisioner.volume": volume(server, name="db-01", image_url=server.of("plain.qcow2"))},
    ]
    first = ansible.play(tasks)
    assert first.status == 0, first.output
    assert [result["changed"] for result in first.results] == [True, True]
    assert first.results[0]["job"]["status"] == "completed"
    assert first.results[0]["volume"]["path"] == str(daemon.volume("web-01"))
    assert same(images["zlib.qcow2"], daemon.volume("web-01"))
    inode, jobs = daemon.volume("web-01").stat().st_ino, daemon.call("GET", "/api/v1/jobs").json()["count"]
    second = ansible.play(tasks)
    assert [result["changed"] for result in second.results] == [False, False]
    assert "changed=0" in second.recap
    assert second.results[0]["volume"] == first.results[0]["volume"]
    assert daemon.volume("web-01").stat().st_ino == inode
    assert daemon.call("GET", "/api/v1/jobs").json()["count"] == jobs == 2


def test_check_mode_predicts(ansible, daemon, server):
    checked = ansible.play([{"lvp.provisioner.volume": volume(server)}], "--check")
    found = checked.only
    assert found["changed"] is True
    assert found["plan"]["placement"] == "new"
    assert '+    "size_bytes": 1073741824' in checked.output
    assert daemon.files() == set()
    assert daemon.call("GET", "/api/v1/jobs").json()["count"] == 0
    made = ansible.module("volume", **volume(server))
    assert made["diff"] == found["diff"]
    assert made["volume"]["size_bytes"] == found["diff"]["after"]["size_bytes"]
    assert made["volume"]["checksum"] == found["diff"]["after"]["checksum"]
    assert ansible.module("volume", "--check", **volume(server))["changed"] is False


def test_other_image_needs_replace(ansible, daemon, server, images):
    assert ansible.module("volume", **volume(server))["changed"] is True
    other = volume(server, image_url=server.of("plain.qcow2"))
    words = "the volume web-01 exists with another image; set replace, or keep_existing"
    predicted, checked = ansible.each("volume", [other, {**other, "replace": True}], "--check")
    refused, kept = ansible.each("volume", [other, {**other, "keep_existing": True}])
    assert predicted["msg"] == refused["msg"] == words
    assert checked["plan"]["placement"] == "swap"
    assert (kept["state"], kept["changed"]) == ("ok", False)
    assert same(images["zlib.qcow2"], daemon.volume("web-01"))
    replaced, again = ansible.each("volume", [{**other, "replace": True}] * 2)
    assert replaced["diff"] == checked["diff"]
    assert replaced["diff"]["before"]["image_url"] == server.of("zlib.qcow2")
    assert same(images["plain.qcow2"], daemon.volume("web-01"))
    assert again["changed"] is False


def test_changed_image_under_the_same_url(ansible, daemon, server, tmp_path):
    """The publisher's digest decides, not the url."""
    image = server.root / "moving.raw"
    image.write_bytes(b"one" * 2**19)
    options = volume(server, image_url=server.of("moving.raw"), image_type="raw")
    image.with_name("moving.raw.sha256").write_text(digest_line(image))
    assert ansible.module("volume", **options)["changed"] is True
    image.write_bytes(b"two" * 2**19)
    image.with_name("moving.raw.sha256").write_text(digest_line(image))
    assert "exists with another image" in ansible.module("volume", **options)["msg"]


def digest_line(image):
    return f"{hashlib.sha256(image.read_bytes()).hexdigest()}  {image.name}\n"


def test_publisher_down(ansible, daemon, server):
    """A volume that is there needs no publisher."""
    options = volume(server)
    assert ansible.module("volume", **options)["changed"] is True
    (server.root / "zlib.qcow2").rename(server.root / "away")
    try:
        found = ansible.module("volume", **options)
        assert (found["state"], found["changed"]) == ("ok", False)
    finally:
        (server.root / "away").rename(server.root / "zlib.qcow2")


def test_larger_size_grows(ansible, daemon, server):
    assert ansible.module("volume", **volume(server))["changed"] is True
    inode = daemon.volume("web-01").stat().st_ino
    checked = ansible.module("volume", "--check", **volume(server, size_gb=2))
    assert (checked["changed"], daemon.volume("web-01").stat().st_size) == (True, GIB)
    without_size = {name: value for name, value in volume(server).items() if name != "size_gb"}
    grown, again, smaller, any_size = ansible.each(
        "volume", [volume(server, size_gb=2), volume(server, size_gb=2), volume(server), without_size]
    )
    assert grown["diff"] == checked["diff"]
    assert grown["volume"]["size_bytes"] == daemon.volume("web-01").stat().st_size == 2 * GIB
    assert daemon.volume("web-01").stat().st_ino == inode
    assert (again["changed"], any_size["changed"]) == (False, False)
    assert "exists with another size" in smaller["msg"]


def test_foreign_volume_needs_replace(ansible, daemon, server):
    daemon.volumes.mkdir(exist_ok=True)
    daemon.volume("web-01").write_bytes(b"precious" * 2**10)
    refused = ansible.module("volume", **volume(server))
    assert "that the server did not make" in refused["msg"]
    assert first_bytes(daemon.volume("web-01"), 8) == b"precious"


def test_absent(ansible, daemon, server):
    ansible.options = {"url": daemon.url, "token": admin_token(daemon)}
    absent = {"name": "web-01", "state": "absent"}
    missing, made = ansible.each("volume", [absent, volume(server)])
    assert (missing["changed"], made["changed"]) == (False, True)
    checked = ansible.module("volume", "--check", **absent)
    assert checked["changed"] is True
    assert daemon.volume("web-01").exists()
    removed, again = ansible.each("volume", [absent, absent])
    assert removed["diff"] == checked["diff"]
    assert removed["diff"]["before"]["name"] == "web-01"
    assert not daemon.volume("web-01").exists()
    assert again["changed"] is False


def admin_token(daemon):
    done = daemon.lvp("token", "create", "admin", "--role", "admin", "--config", daemon.folder / "config.toml")
    assert done.status == 0, done.err
    return done.out.split()[0]


def test_cloud_init_is_not_shown(ansible, daemon, server):
    secret = "#cloud-config\npassword: tops3cret-äöü\n"
    options = volume(server, cloud_init={"user_data": secret, "meta_data": None})
    first = ansible.play([{"lvp.provisioner.volume": options}], "-vvv")
    assert first.only["changed"] is True, first.output
    assert "tops3cret" not in first.output
    assert "tops3cret" not in str(first.only)
    seed = daemon.volume("web-01-seed").read_bytes()
    assert secret.encode() in seed
    assert ansible.module("volume", **options)["changed"] is False


def test_cloud_init_added_later(ansible, daemon, server):
    made, refused = ansible.each(
        "volume", [volume(server), volume(server, cloud_init={"user_data": "#cloud-config\n"})]
    )
    assert made["changed"] is True
    assert "exists with another cloud-init seed" in refused["msg"]


def test_failed_job(ansible, daemon, server):
    failed = ansible.module("volume", **volume(server, image_url=server.of("wrong.qcow2")))
    assert failed["state"] == "failed"
    assert failed["error"] == "job failed"
    assert failed["job"]["status"] == "failed"
    assert failed["job"]["error"] in failed["msg"]
    assert "was expected by" in failed["msg"]
    assert not daemon.volume("web-01").exists()


WRONG = [
    ({"size_gb": 0}, "volume_size_gb", "invalid request"),
    ({"name": "../etc/passwd"}, "volume", "invalid request"),
    ({"name": "wéb-01 ☃"}, "volume", "invalid request"),
    ({"target": "nowhere"}, "nowhere", "invalid request"),
    ({"image_url": "http://elsewhere.example/x.qcow2"}, "belongs to no configured source", "invalid request"),
    ({"checksum": "sha256:xyz"}, "checksum must be 64", "invalid request"),
    ({"image_url": None, "image": "no-such-image"}, "no-such-image", "invalid request"),
    ({"image": "debian-12"}, "mutually exclusive", None),
    ({"image_url": None}, "any of the following are missing: image, image_url", None),
    ({"token": "x"}, "token|token_file", None),
    ({"key": "/etc/key"}, "missing parameter", None),
    ({"token_file": "/nonexistent"}, "cannot be read", "invalid option"),
    ({"url": "ftp://host"}, "must look like", "invalid option"),
    ({"url": "unix:relative"}, "absolute path", "invalid option"),
    ({"url": "unix:/nonexistent/socket"}, "no response from unix:/nonexistent/socket", "unreachable"),
    ({"url": "http://127.0.0.1:1"}, "no response from http://127.0.0.1:1", "unreachable"),
    ({"cert": "/nonexistent.pem", "url": "https://127.0.0.1:1"}, "127.0.0.1:1", "unreachable"),
]


def test_wrong_options(ansible, daemon, server):
    given = [{k: v for k, v in volume(server, **options).items() if v is not None} for options, _, _ in WRONG]
    for (options, said, error), failed in zip(WRONG, ansible.each("volume", given), strict=True):
        assert failed["state"] == "failed", options
        assert said in failed["msg"], options
        assert failed.get("error") == error, (options, failed)
        assert "Traceback" not in str(failed), options
    assert daemon.call("GET", "/api/v1/jobs").json()["count"] == 0
    assert daemon.files() == set()
