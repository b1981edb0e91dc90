"""Hostile images on a target with qcow2 volumes: none becomes a volume, and none gets a backing file of its choice."""

from __future__ import annotations

import json
import re

import pytest

from tests.end_to_end.conftest import qemu_img, vouch
from tests.end_to_end.daemon import Daemon, plain_config
from tests.hostile.cases import REACHING_ELSEWHERE
from tests.hostile.conftest import CONVERTERS
from tests.hostile.forge import SECRET
from tests.servers.images import image_server

pytestmark = pytest.mark.slow
CASES = [case for case in REACHING_ELSEWHERE if case.name.startswith(("backing", "data-file"))]


@pytest.fixture(scope="module", params=[True, False], ids=["overlays", "alone"])
def daemon(tmp_path_factory, shop, converter, request):
    """A daemon with the volume web01, on a target with or without overlays."""
    folder = tmp_path_factory.mktemp("hostile")
    config = plain_config(folder / "d", converters=CONVERTERS[converter])
    config["targets"]["files"] |= {"format": "qcow2", "clone": request.param}
    daemon = Daemon(folder / "d", config)
    with image_server(shop.folder) as server:
        vouch(shop.raw)
        daemon.start()
        daemon.of = server.of
        try:
            assert daemon.job_ended(daemon.submit(server.of(shop.raw.name), "web01", "raw"))["status"] == "completed"
            yield daemon
        finally:
            daemon.kill()


def backing_files(path):
    """Return the chain below a volume: the name and the format of each file."""
    found = json.loads(qemu_img("info", "--backing-chain", "--output=json", "-f", "qcow2", path))
    return [(one["filename"], one["format"]) for one in found[1:]]


def volume_files(daemon):
    return {name for name in daemon.files() if name.startswith("volumes/")}


@pytest.mark.parametrize("declared", [None, "raw"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_image(daemon, shop, made, converter, case, declared):
    if converter not in case.converters:
        return
    before = volume_files(daemon)
    file = shop.folder / case.name
    file.write_bytes(made(case))
    vouch(file)
    volume = daemon.volumes / "web01.qcow2"
    job = daemon.job_ended(daemon.submit(daemon.of(case.name), "web01", declared or case.declared))
    assert job["status"] == "failed", job
    assert declared or re.search(case.words, job["error"]), job["error"]
    assert volume_files(daemon) == before
    expected = [(str(path), "raw") for path in (daemon.volumes / ".lvp").glob("backing/*")]
    assert backing_files(volume) == expected
    assert SECRET not in volume.read_bytes()
    qemu_img("compare", "-f", "raw", "-F", "qcow2", shop.raw, volume)
