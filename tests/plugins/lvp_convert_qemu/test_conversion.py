# ruff: noqa: ASYNC221, ASYNC240 - small files of a test, and tools that take milliseconds
"""The converter with the real qemu-img, on files and on loop devices."""

import errno
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from lvp_convert_qemu import QemuConverter, QemuSettings, lvp_converters
from provisioner.contracts import MIB, BackEndContext, ByteSize, Device
from provisioner.contracts.errors import (
    ConvertError,
    CorruptImageError,
    ImageFormatError,
    ImageTooLargeError,
    NoSpaceError,
    UnsafeImageError,
)
from provisioner.contracts.testing import ConverterConformance, FileView
from provisioner.contracts.testing.converter_suite import make_device, openers

pytestmark = pytest.mark.slow  # a qemu-img process for each test

CONTENT = ConverterConformance.content
SIZE = len(CONTENT)


def make_converter(**settings):
    return QemuConverter(QemuSettings(**settings), BackEndContext("qemu-img", Path("/nowhere")))


def qemu_img(*arguments):
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def make_image(folder, kind="qcow2", options="", *flags, content=CONTENT):
    """An image of ``content`` in a format; ``options`` are qemu-img's ``-o``."""
    raw, image = folder / "content", folder / "image"
    raw.write_bytes(content)
    image.unlink(missing_ok=True)
    qemu_img("convert", "-f", "raw", "-O", kind, *(["-o", options] if options else []), *flags, raw, image)
    return image


async def convert(image, kind, device, virtual_size=SIZE, report=lambda done: None, **settings):
    with FileView(image, kind, virtual_size) as view:
        await make_converter(**settings).convert(view, device, report)


class OneKind(ConverterConformance):
    """The suite over one kind of image."""

    kind = ("qcow2", "")

    def make_converter(self):
        return make_converter()

    def make_images(self, folder):
        return [(make_image(folder, *self.kind, content=self.content), self.kind[0])]


class TestPlainQcow2(OneKind):
    kind = ("qcow2", "")


class TestOldQcow2(OneKind):
    kind = ("qcow2", "compat=0.10")


class TestZlibQcow2(OneKind):
    kind = ("qcow2", "compression_type=zlib", "-c")


class TestZstdQcow2(OneKind):
    kind = ("qcow2", "compression_type=zstd", "-c")


class TestRaw(OneKind):
    kind = ("raw", "")


class TestSparseVmdk(OneKind):
    kind = ("vmdk", "subformat=monolithicSparse")


class TestStreamVmdk(OneKind):
    kind = ("vmdk", "subformat=streamOptimized")


class TestVhd(OneKind):
    kind = ("vpc", "force_size=on")


class TestVhdx(OneKind):
    kind = ("vhdx", "")


class TestVdi(OneKind):
    kind = ("vdi", "")


def test_the_plugin_brings_one_converter():
    (back_end,) = lvp_converters()
    assert (back_end.name, back_end.create, back_end.settings) == ("qemu-img", QemuConverter, QemuSettings)
    assert not QemuConverter.streams


@contextmanager
def loop_device(backing, sector_size):
    """A loop device over ``backing``."""
    attach = ["losetup", "--find", "--show", "--direct-io=on", "--sector-size", str(sector_size), backing]
    path = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield path
    finally:
        subprocess.run(["losetup", "--detach", path], check=True)


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("reads_zero", [True, False])
async def test_block_device_keeps_its_tail(tmp_path, sector_size, reads_zero):
    backing = tmp_path / "disk"
    backing.write_bytes(bytes(SIZE + MIB) if reads_zero else b"\xa5" * (SIZE + MIB))
    image = make_image(tmp_path)
    with loop_device(backing, sector_size) as path:
        await convert(image, "qcow2", Device(path, SIZE + MIB, reads_zero=reads_zero))
        assert openers(path) == []
    assert backing.read_bytes() == CONTENT + (bytes(MIB) if reads_zero else b"\xa5" * MIB)


async def test_sparse_image_keeps_zero_device_sparse(tmp_path):
    image = make_image(tmp_path, content=b"x" * MIB + bytes(63 * MIB))
    (tmp_path / "device").touch()
    os.truncate(tmp_path / "device", 64 * MIB)
    await convert(image, "qcow2", Device(str(tmp_path / "device"), 64 * MIB, reads_zero=True), 64 * MIB)
    assert (tmp_path / "device").stat().st_blocks * 512 < 4 * MIB


async def test_inspected_file_is_converted(tmp_path):
    image = make_image(tmp_path)
    device = make_device(tmp_path, SIZE)
    with FileView(image, "qcow2", SIZE) as view:
        image.rename(tmp_path / "elsewhere")
        make_image(tmp_path, content=b"\xee" * SIZE)
        await make_converter().convert(view, device, lambda _: None)
    assert Path(device.path).read_bytes() == CONTENT


async def test_raw_with_foreign_header(tmp_path):
    image = make_image(tmp_path)
    content = image.read_bytes()
    device = make_device(tmp_path, len(content))
    await convert(image, "raw", device, len(content))
    assert Path(device.path).read_bytes() == content


@pytest.mark.parametrize("name", ["a,b=c", "nbd:x", "-n", "json:{}", "new\nline", "space d"])
async def test_names_are_never_parsed(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    image = make_image(folder).rename(folder / name)
    device = make_device(folder, SIZE)
    await convert(image, "qcow2", device)
    assert Path(device.path).read_bytes() == CONTENT


async def test_progress_between_begin_and_end(tmp_path):
    image = make_image(tmp_path, "qcow2", "", "-c", content=os.urandom(MIB // 2).hex().encode() * 16)
    done = []
    await convert(image, "qcow2", make_device(tmp_path, 16 * MIB), 16 * MIB, report=done.append)
    assert len(done) > 3  # how often qemu-img reports depends on how fast it is
    assert done[-1] == 16 * MIB


async def test_filesystem_without_direct_io(tmp_path, monkeypatch):
    plain_open = os.open

    def no_direct(path, flags, *args, **kwargs):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return plain_open(path, flags, *args, **kwargs)

    image = make_image(tmp_path)
    device = make_device(tmp_path, SIZE)
    monkeypatch.setattr(os, "open", no_direct)
    await convert(image, "qcow2", device)
    monkeypatch.undo()
    assert Path(device.path).read_bytes() == CONTENT


# --- images that are refused


async def test_disk_larger_than_volume(tmp_path):
    device = make_device(tmp_path, SIZE - 1, stale=True)
    with pytest.raises(ImageTooLargeError, match=str(SIZE)):
        await convert(make_image(tmp_path), "qcow2", device)
    assert set(Path(device.path).read_bytes()) == {0xA5}


@pytest.mark.parametrize("kind", ["qcow2", "vmdk"])
async def test_backing_file_is_not_read(tmp_path, kind):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret!!" * (SIZE // 8))
    image = tmp_path / "image"
    if kind == "vmdk":  # a vmdk wants a vmdk behind it
        secret = make_image(tmp_path, "vmdk").rename(tmp_path / "secret.vmdk")
    qemu_img("create", "-f", kind, "-b", secret, "-F", "raw" if kind == "qcow2" else kind, image)
    device = make_device(tmp_path, SIZE, stale=True)
    with pytest.raises(UnsafeImageError, match="backing"):
        await convert(image, kind, device)
    assert set(Path(device.path).read_bytes()) == {0xA5}


async def test_external_data_file(tmp_path):
    image = tmp_path / "image"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data,data_file_raw=on", image, SIZE)
    with pytest.raises(UnsafeImageError, match="external file"):
        await convert(image, "qcow2", make_device(tmp_path, SIZE))


async def test_encrypted_image(tmp_path):
    image = make_image(tmp_path)
    with image.open("r+b") as file:
        file.seek(32)
        file.write((1).to_bytes(4, "big"))  # AES in the header
    with pytest.raises((UnsafeImageError, CorruptImageError), match="encrypt"):
        await convert(image, "qcow2", make_device(tmp_path, SIZE))


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
async def test_vmdk_text_descriptor(tmp_path, subformat):
    with pytest.raises(UnsafeImageError, match="text"):
        await convert(make_image(tmp_path, "vmdk", f"subformat={subformat}"), "vmdk", make_device(tmp_path, SIZE))


async def test_vmdk_header_referring_to_text(tmp_path):
    image = make_image(tmp_path, "vmdk")
    with image.open("r+b") as file:
        file.seek(12)
        file.write(bytes(8))  # a capacity of nothing
    with pytest.raises(UnsafeImageError, match="text"):
        await convert(image, "vmdk", make_device(tmp_path, SIZE))


async def test_ambiguous_image(tmp_path):
    with pytest.raises(ImageFormatError, match="ambiguous"):
        await convert(make_image(tmp_path), "qcow2", make_device(tmp_path, SIZE), virtual_size=SIZE // 2)


async def test_converts_the_opened_file(tmp_path):
    image, device = make_image(tmp_path), make_device(tmp_path, SIZE)
    evil = tmp_path / "evil"
    qemu_img("create", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", evil, SIZE)
    with FileView(image, "qcow2", SIZE) as view:
        evil.rename(image)
        await make_converter().convert(view, device, lambda _: None)
    assert Path(device.path).read_bytes() == CONTENT


async def test_format_other_than_declared(tmp_path):
    with pytest.raises(CorruptImageError):
        await convert(make_image(tmp_path, "vdi"), "qcow2", make_device(tmp_path, SIZE))


async def test_damaged_compressed_cluster(tmp_path):
    image = make_image(tmp_path, "qcow2", "", "-c", content=os.urandom(SIZE // 2).hex().encode())
    with image.open("r+b") as file:
        file.seek(image.stat().st_size // 2)
        file.write(b"\xff" * 65536)
    with pytest.raises(CorruptImageError) as caught:
        await convert(image, "qcow2", make_device(tmp_path, SIZE))
    assert "json:" not in caught.value.message
    assert "/proc/self" not in caught.value.message


# --- hosts that are full, slow, or stopped


@pytest.fixture
def tool(tmp_path):
    """Make a stand-in for qemu-img out of a few lines of shell."""

    def make(script):
        path = tmp_path / "tool"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


async def test_full_filesystem(tmp_path):
    image = make_image(tmp_path, content=os.urandom(SIZE))
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE // 2}", "tmpfs", mount], check=True)
    try:
        (mount / "device").touch()
        os.truncate(mount / "device", SIZE)
        with pytest.raises(NoSpaceError, match="no space"):
            await convert(image, "qcow2", Device(str(mount / "device"), SIZE, reads_zero=True))
    finally:
        subprocess.run(["umount", mount], check=True)


async def test_memory_limit_reached(tmp_path):
    image = make_image(tmp_path)
    with pytest.raises(ConvertError, match="memory_limit"):
        await convert(image, "qcow2", make_device(tmp_path, SIZE), memory_limit=ByteSize(16 * MIB))


async def test_no_memory_limit(tmp_path):
    device = make_device(tmp_path, SIZE)
    await convert(make_image(tmp_path), "qcow2", device, memory_limit=ByteSize(0))
    assert Path(device.path).read_bytes() == CONTENT


async def test_stalled_qemu_img_is_stopped(tmp_path, tool):
    path = tool("printf '    (3.00/100%%)\\r'; exec sleep 1000")
    device = make_device(tmp_path, SIZE)
    with pytest.raises(ConvertError, match="no progress"):
        await convert(make_image(tmp_path, "raw"), "raw", device, path=path, stall_timeout=0.3)
    assert openers(device.path) == []


async def test_qemu_img_missing(tmp_path):
    with pytest.raises(ConvertError, match="No such file"):
        await convert(make_image(tmp_path, "raw"), "raw", make_device(tmp_path, SIZE), path="/nowhere/qemu-img")


async def test_endless_image_description(tmp_path, tool):
    path = tool("yes ' { \"snapshots\": [' | head -c 2000000")
    with pytest.raises(CorruptImageError, match="too long"):
        await convert(make_image(tmp_path), "qcow2", make_device(tmp_path, SIZE), path=path)


async def test_cancel_ends_child_processes(tmp_path, tool):
    path = tool("sleep 1000 & trap '' TERM; printf '    (3.00/100%%)\\r'; wait; sleep 1000")
    device = make_device(tmp_path, SIZE)
    scope = trio.CancelScope()
    with scope:
        await convert(make_image(tmp_path, "raw"), "raw", device, report=lambda _: scope.cancel(), path=path)
    assert scope.cancelled_caught
    assert openers(device.path) == []  # all of them had inherited it


async def test_cancel_ends_qemu_img(tmp_path):
    image = make_image(tmp_path, "qcow2", "", "-c", content=os.urandom(MIB // 2).hex().encode() * 16)
    device = make_device(tmp_path, 16 * MIB)
    scope, done = trio.CancelScope(), []

    def cancel_early(count):
        done.append(count)
        if count:
            scope.cancel()

    with scope:
        await convert(image, "qcow2", device, 16 * MIB, report=cancel_early)
    assert scope.cancelled_caught
    assert done[-1] < 16 * MIB
    assert openers(device.path) == []
