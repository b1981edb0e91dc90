"""The service runs in a guest with real volume groups. Its images and its client are on this machine; they use TLS."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.guest.harness import Guest, Images
from tests.guest.outside.service.remote import PORT, Remote
from tests.servers.images import image_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# `make test-guest-all` uses an emulated machine, whose kernel and two processors are more like a host's.
ALL_ROWS = bool(os.environ.get("LVP_ALL_ROWS"))
MIB = 2**20
SIZE = 48 * MIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two disk images, each raw and as compressed qcow2, with their checksums."""
    root = tmp_path_factory.mktemp("served")
    for name in ("a", "b"):
        noise = random.Random(name)
        raw = root / f"{name}.raw"
        with raw.open("wb") as file:
            file.truncate(SIZE)
            for offset in range(0, SIZE, 8 * MIB):
                file.seek(offset)
                file.write(noise.randbytes(2 * MIB))
        packed = root / f"{name}.qcow2"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, packed], check=True)
        for image in (raw, packed):
            digest = hashlib.sha256(image.read_bytes()).hexdigest()
            image.with_name(f"{image.name}.sha256").write_text(f"{digest}  {image.name}\n")
    return root


@pytest.fixture(scope="module")
def remote(
    request: pytest.FixtureRequest,
    images: Images,
    wheel: Path | None,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Remote]:
    """The running service. BASES in the module sets how many bases its pool may have."""
    # Most of the time is the service's own start-up and copying, and TLS, which user-mode Linux does not emulate.
    guest = Guest(images, wheel=wheel, ports=[PORT], user_mode=not ALL_ROWS)
    with image_server(folder) as server, guest:
        guest.boot()
        keys, port = tmp_path_factory.mktemp("tls"), server.url.rpartition(":")[2]
        remote = Remote(guest, keys, port, folder, getattr(request.module, "BASES", 20))
        remote.install()
        yield remote
