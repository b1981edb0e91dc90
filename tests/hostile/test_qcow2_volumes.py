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
CASES = [case for case in REACHING_ELSEWHERE if "qcow2" in {case.declared}]


@pytest.fixture(scope="module", params=[True, False], ids=["overlays", "alone"])
def daemon(tmp_path_factory, shop, converter, request):
    """A daemon with the volume web01, on a target with or without overlays."""
    folder = tmp_path_factory.mktemp("hostile")
    table = {"format": "qcow2", "clone": request.param}
    files = {**plain_config(folder / "d")["targets"]["files"], **table}
    daemon = Daemon(
        folder / "d", plain_config(folder / "d", targets={"files": files}, converters=CONVERTERS[converter])
    )
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


@pytest.mark.parametrize("declared", [None, "raw"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_image(daemon, shop, made, converter, case, declared):
    if converter not in case.converters:
        return
    before = daemon.files()
    file = shop.folder / case.name
    file.write_bytes(made(case))
    vouch(file)
    volume = daemon.volumes / "web01.qcow2"
    for name in ("web01", "web02"):
        job = daemon.job_ended(daemon.submit(daemon.of(case.name), name, declared or case.declared))
        if job["status"] == "completed":  # what is no qcow2 image at all is data
            assert declared == "raw"
            assert not made(case).startswith(b"QFI\xfb")
            return
        assert declared or re.search(case.words, job["error"]), job["error"]
    assert daemon.files() == before
    expected = [(str(path), "raw") for path in (daemon.volumes / ".lvp").glob("backing/*")]
    assert backing_files(volume) == expected
    assert SECRET not in volume.read_bytes()
    qemu_img("compare", "-f", "raw", "-F", "qcow2", shop.raw, volume)
