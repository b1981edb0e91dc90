"""The module ``image``: it fills the cache, pins and removes."""

from __future__ import annotations

import hashlib

import pytest


@pytest.fixture
def admin(ansible, make_daemon):
    """Return a daemon; ansible has an administrator's token, because an operator may not remove images."""
    daemon = make_daemon("admin").start()
    done = daemon.lvp("token", "create", "admin", "--role", "admin", "--config", daemon.folder / "config.toml")
    ansible.options = {"url": daemon.url, "token": done.out.split()[0]}
    return daemon


def cached(daemon):
    return daemon.call("GET", "/api/v1/cache/images").json()["images"]


def test_cached_pinned_removed(ansible, admin, server):
    url = server.of("zlib.qcow2")
    checked = ansible.module("image", "--check", image_url=url, pinned=True)
    assert checked["changed"] is True
    assert cached(admin) == []
    first, second = ansible.each("image", [{"image_url": url}, {"image_url": url}])
    assert (first["changed"], second["changed"]) == (True, False)
    assert first["image"]["url"] == url
    assert first["diff"]["after"]["url"] == url
    assert ansible.module("image", "--check", image_url=url)["changed"] is False
    pinned = ansible.each("image", [{"image_url": url, "pinned": True}] * 2)
    assert [one["changed"] for one in pinned] == [True, False]
    assert pinned[0]["diff"]["before"]["pinned"] is False
    assert cached(admin)[0]["pinned"] is True
    by_digest = {"image_url": "http://127.0.0.1:9/away.qcow2", "checksum": "sha256:" + first["image"]["checksum"]}
    unpinned = ansible.each("image", [by_digest, {**by_digest, "pinned": False}])
    assert [one["changed"] for one in unpinned] == [False, True]
    assert cached(admin)[0]["pinned"] is False
    assert ansible.module("image", "--check", image_url=url, state="absent")["changed"] is True
    assert len(cached(admin)) == 1
    removed = ansible.each("image", [{"image_url": url, "state": "absent"}] * 2)
    assert [one["changed"] for one in removed] == [True, False]
    assert cached(admin) == []


def test_newer_image_under_the_same_url(ansible, admin, server):
    image = server.root / "moving.raw"
    digests = []
    for content in (b"one", b"two"):
        image.write_bytes(content * 2**19)
        digests.append(hashlib.sha256(image.read_bytes()).hexdigest())
        image.with_name("moving.raw.sha256").write_text(f"{digests[-1]}  moving.raw\n")
        found = ansible.module("image", image_url=server.of("moving.raw"), image_type="raw")
        assert found["changed"] is True
        assert found["image"]["checksum"] == digests[-1]


def test_failures(ansible, admin, server):
    wrong, unknown, weak, foreign = ansible.each(
        "image",
        [
            {"image_url": server.of("wrong.qcow2")},
            {"image": "no-such-image"},
            {"checksum": 128 * "0", "state": "absent"},
            {"image_url": "http://elsewhere.example/a.qcow2"},
        ],
    )
    assert (wrong["error"], wrong["job"]["status"]) == ("job failed", "failed")
    assert "was expected by" in wrong["msg"]
    assert (unknown["error"], unknown["status_code"]) == ("not found", 404)
    assert weak["error"] == "invalid option"
    assert foreign["status_code"] == 400
    assert cached(admin) == []
