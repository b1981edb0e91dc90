# ruff: noqa: ASYNC240 - small files of a test
"""Images whose bytes look like a header: a volume never gets a backing file of an image's choice."""

import json
import struct
from pathlib import Path

import pytest

from lvp_target_file import qcow2
from provisioner.contracts import MIB, Placement
from tests.plugins.lvp_target_file.qcow2_images import (
    DIGEST,
    SIZE,
    check,
    clone,
    content,
    info,
    make_base,
    make_target,
    provision,
    request,
    tool,
    write,
    write_inside,
)

SECRET = b"secret of the host".ljust(4096, b"!")


def qcow2_header(folder):
    """Return the bytes of an image that refers to a file of the host."""
    secret, image = folder / "secret", folder / "hostile"
    secret.write_bytes(SECRET)
    tool("qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", secret, image, MIB)
    data = image.read_bytes()
    image.unlink()
    return data


def header_extensions(folder):
    """Return the same, with a name for the whole first cluster: what lies behind our header must not be read either."""
    name = str(folder / "secret").encode()
    extensions = struct.pack(">II", 0x44415441, len(name)) + name.ljust(-(-len(name) // 8) * 8, b"\0")
    return qcow2_header(folder)[:104] + extensions * 100


def vmdk_text(folder):
    (folder / "secret").write_bytes(SECRET)
    head = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n\n'
    return f'{head}RW 8 FLAT "{folder}/secret" 0\n'.encode()


HOSTILE = pytest.mark.parametrize("make", [qcow2_header, header_extensions, vmdk_text])


def chain(path):
    found = json.loads(tool("qemu-img", "info", "--backing-chain", "--output=json", "-f", "qcow2", path))
    return [(Path(one["filename"]).name, one["format"]) for one in found]


@HOSTILE
async def test_volume_that_stands_alone(tmp_path, make):
    volumes, data = tmp_path / "volumes", make(tmp_path)
    volumes.mkdir()
    volume = await provision(make_target(volumes, clone=False), data)
    check(volume.path)
    assert chain(volume.path) == [("web01.qcow2", "qcow2")]
    assert content(volume.path) == data.ljust(SIZE, b"\0")
    first = Path(volume.path).read_bytes()[: qcow2.CLUSTER]
    assert not any(first[104:])


@HOSTILE
async def test_overlay_of_a_hostile_base(tmp_path, make):
    volumes, data = tmp_path / "volumes", make(tmp_path).ljust(MIB, b"\0")
    volumes.mkdir()
    target = make_target(volumes)
    base = await make_base(target, data)
    volume = await clone(target, base)
    assert chain(volume.path) == [("web01.qcow2", "qcow2"), (base.name, "raw")]
    assert content(volume.path) == data.ljust(SIZE, b"\0")


@HOSTILE
async def test_guest_writes_a_header(tmp_path, make):
    """To the guest, the first byte of the disk is not the first one of the file."""
    volumes, data = tmp_path / "volumes", make(tmp_path)
    volumes.mkdir()
    target = make_target(volumes)
    for name, volume in (
        ("web01", await clone(target, await make_base(target))),
        ("web02", await provision(target, b"data", "web02", "job-2")),
    ):
        before = info(volume.path).get("full-backing-filename")
        write_inside(volume.path, data)
        check(volume.path)
        assert info(volume.path).get("full-backing-filename") == before
        assert content(volume.path).startswith(data)
        assert (await target.find(name)).size_bytes == SIZE


async def test_overwritten_in_place(tmp_path, monkeypatch):
    """Nothing of the old volume's header is left."""
    target = make_target(tmp_path, replace="in-place")
    await clone(target, await make_base(target))
    data = qcow2_header(tmp_path)
    monkeypatch.setattr("lvp_target_file.target.place", lambda *_: Placement.IN_PLACE)
    async with target.stage(request(job="job-2"), verified=True) as staged:
        write(staged.device.path, data)
        volume = await staged.commit(DIGEST)
    monkeypatch.undo()
    check(volume.path)
    assert chain(volume.path) == [("web01.qcow2", "qcow2")]
    assert content(volume.path) == data.ljust(SIZE, b"\0")
