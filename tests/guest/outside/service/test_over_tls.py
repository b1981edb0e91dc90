"""Jobs on real LVM, requested over TLS from another machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.guest.outside.service.remote import device

if TYPE_CHECKING:
    from tests.guest.outside.service.remote import Remote


@pytest.mark.parametrize("image", ["a.qcow2", "b.raw"])
@pytest.mark.parametrize("target", ["plain", "thin"])
def test_provision_a_volume(remote: Remote, target: str, image: str) -> None:
    job = remote.ended(remote.submit(image, "web01", target))  # the second image replaces the first
    assert job["status"] == "completed", job
    assert job["volume"]["path"] == device(target, "web01")
    assert job["volume"]["provisioned_by"] == ("clone" if target == "thin" else "copy")
    assert remote.holds(device(target, "web01"), image[0])
    assert remote.left_over() == set()


def test_provision_the_same_image_again(remote: Remote) -> None:
    first = remote.ended(remote.submit("a.qcow2", "again01", "thin"))
    second = remote.ended(remote.submit("a.qcow2", "again02", "thin"))
    assert {job["volume"]["provisioned_by"] for job in (first, second)} == {"clone"}
    assert second["cache_hit"]
    assert remote.holds(device("thin", "again02"), "a")


def test_list_and_remove_only_own_volumes(remote: Remote) -> None:
    remote.guest.sh("lvcreate -qy -L 64M -n foreign vgplain")
    listed = {(volume["target"], volume["name"]) for volume in remote.call("GET", "/api/v1/volumes").json()["volumes"]}
    assert ("plain", "web01") in listed
    assert ("plain", "foreign") not in listed
    assert remote.call("DELETE", "/api/v1/volumes/plain/foreign").status_code == 404
    assert remote.call("DELETE", "/api/v1/volumes/thin/again02").status_code == 200
    assert "foreign" in remote.volumes("vgplain")
    assert "again02" not in remote.volumes("vgthin")
    remote.guest.sh("lvremove -qy vgplain/foreign")


def test_an_open_volume_is_not_changed(remote: Remote) -> None:
    holder = remote.guest.start(["sh", "-c", f"exec sleep 100000 < {device('plain', 'web01')}"], "/dev/null")
    job = remote.ended(remote.submit("a.raw", "web01", "plain"))
    assert job["status"] == "failed"
    assert "in use" in job["error"] or "open" in job["error"]
    assert remote.call("DELETE", "/api/v1/volumes/plain/web01").status_code == 409
    assert remote.holds(device("plain", "web01"), "b")
    remote.guest.sh(f"kill {holder}; while kill -0 {holder} 2>/dev/null; do sleep 0.1; done")
