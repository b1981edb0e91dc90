"""Four concurrent clients create and remove fifty volumes of five images. The pool does not change."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.guest.outside.service.remote import device

if TYPE_CHECKING:
    from pathlib import Path

    from tests.guest.outside.service.remote import Remote

pytestmark = pytest.mark.slow

IMAGES, VOLUMES, CLIENTS = 5, 50, 4


def make_images(folder: Path) -> list[str]:
    """Create small images with random content."""
    names = []
    for number in range(IMAGES):
        image = folder / f"many{number}.raw"
        image.write_bytes(os.urandom(2**20))
        digest = hashlib.sha256(image.read_bytes()).hexdigest()
        image.with_name(f"{image.name}.sha256").write_text(f"{digest}  {image.name}\n")
        names.append(image.name)
    return names


def test_fifty_clones_and_removals(remote: Remote) -> None:
    images = make_images(remote.folder)
    for image in images:
        job = remote.ended(remote.submit(image, "seed", "thin"))
        assert job["status"] == "completed", job
    assert remote.call("DELETE", "/api/v1/volumes/thin/seed").status_code == 200
    fill = "lvs --noheadings -o data_percent vgthin/pool"
    before, filled = remote.volumes("vgthin"), remote.guest.sh(fill)

    def client(number: int) -> list[str]:
        ends = []
        for turn in range(number, VOLUMES, CLIENTS):
            name, image = f"many{turn:02}", images[turn % IMAGES]
            job = remote.ended(remote.submit(image, name, "thin"))
            ends.append(f"{job['status']} {job['volume']['provisioned_by'] if 'volume' in job else job['error']}")
            if job["status"] != "completed":
                continue
            path, size = remote.folder / image, 2**20
            digest = remote.guest.sh(f"head -c {size} {device('thin', name)} | sha256sum").split()[0]
            assert digest == hashlib.sha256(path.read_bytes()).hexdigest(), name
            assert remote.call("DELETE", f"/api/v1/volumes/thin/{name}").status_code == 200
        return ends

    with ThreadPoolExecutor(CLIENTS) as clients:
        ends = [end for ended in clients.map(client, range(CLIENTS)) for end in ended]
    assert ends == ["completed clone"] * VOLUMES
    assert remote.left_over() == set()
    assert remote.volumes("vgthin") == before
    assert remote.guest.sh(fill) == filled
