"""Inspection of real images of every format, made by qemu-img, and of forged ones."""

import json
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.contracts import MIB
from provisioner.contracts.errors import ImageError, UnsafeImageError
from provisioner.download.inspection import WINDOW, ImageInfo, Inspection
from tests.hostile import forge

SIZE = 8 * MIB


def verdict(data, piece=64 * 1024):
    """Inspect as the hashing thread does: piece by piece, then the end."""
    inspection = Inspection()
    for start in range(0, len(data), piece):
        info = inspection.feed(data[start : start + piece], last=False)
        if info is not None:
            return info
    return inspection.feed(b"", last=True)


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "base.raw").write_bytes(b"secret of the host".ljust(SIZE, b"\0"))
        yield Path(made)


def create(folder, *arguments):
    image = folder / "image"
    image.unlink(missing_ok=True)
    command = ["qemu-img", "create", "-q", *arguments]
    subprocess.run([word if word != "IMAGE" else str(image) for word in command], check=True, cwd=folder)
    return image.read_bytes()


def convert(folder, *arguments):
    subprocess.run(["qemu-img", "convert", "-f", "raw", *arguments, "base.raw", "image"], check=True, cwd=folder)
    return (folder / "image").read_bytes()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-O", "qcow2"], ImageInfo("qcow2", SIZE)),
        (["-O", "qcow2", "-o", "compat=0.10"], ImageInfo("qcow2", SIZE)),
        (["-O", "qcow2", "-c"], ImageInfo("qcow2", SIZE)),
        (["-O", "qcow2", "-c", "-o", "compression_type=zstd"], ImageInfo("qcow2", SIZE)),
        (["-O", "qcow2", "-o", "cluster_size=512"], ImageInfo("qcow2", SIZE)),
        (["-O", "vmdk", "-o", "subformat=monolithicSparse"], ImageInfo("vmdk", SIZE)),
        (["-O", "vmdk", "-o", "subformat=streamOptimized"], ImageInfo("vmdk", SIZE)),
        (["-O", "vhdx"], ImageInfo("vhdx", SIZE)),
        (["-O", "vpc", "-o", "force_size=on"], ImageInfo("vpc", SIZE)),
        (["-O", "vdi"], ImageInfo("vdi", SIZE)),
        (["-O", "raw"], ImageInfo("raw", None)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_inspection_valid_image(folder, options, expected):
    """The format and the virtual size are found with pieces of any size."""
    data = convert(folder, *options)
    assert verdict(data) == expected
    assert verdict(data, piece=999) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-f", "qcow2", "-b", "base.raw", "-F", "raw", "IMAGE"], "backing file"),
        (["-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", "IMAGE", "1M"], "backing file"),
        (
            ["-f", "qcow2", "-u", "-b", 'json:{"driver":"nbd","host":"localhost"}', "-F", "raw", "IMAGE", "1M"],
            "backing file",
        ),
        (["-f", "qcow2", "-o", "data_file=data,data_file_raw=on", "IMAGE", "1M"], "external file"),
        (["-f", "qcow2", "-o", "extended_l2=on", "IMAGE", "1M"], "qemu-img convert -f qcow2 -O qcow2 OLD NEW"),
        (["-f", "qcow", "IMAGE", "1M"], "qemu-img convert -f qcow -O qcow2 OLD NEW"),
        (["-f", "qed", "IMAGE", "1M"], "qed"),
        (["-f", "vmdk", "-o", "subformat=monolithicSparse", "-b", "base.vmdk", "-F", "vmdk", "IMAGE"], "has a parent"),
    ],
    ids=lambda value: " ".join(value[:5]) if isinstance(value, list) else "",
)
def test_inspection_external_references(folder, arguments, words):
    """The header is enough to reject the image with the reason."""
    if "base.vmdk" in arguments:
        subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", "base.vmdk", "1M"], check=True, cwd=folder)
    data = create(folder, *arguments)
    with pytest.raises(UnsafeImageError, match=words):
        verdict(data[:WINDOW])


def test_inspection_convert_command(folder):
    """The command that the message names makes an image that is accepted."""
    for kind, *options in (("qcow",), ("qcow2", "-o", "extended_l2=on")):
        create(folder, "-f", kind, *options, "IMAGE", "8M")
        subprocess.run(["qemu-img", "convert", "-f", kind, "-O", "qcow2", "image", "new"], check=True, cwd=folder)
        assert verdict((folder / "new").read_bytes()) == ImageInfo("qcow2", SIZE)


def qcow2(version=3, size=SIZE, incompatible=0, encryption=0, magic=b"QFI\xfb"):
    """Return a forged header."""
    head = struct.pack(">4sIQIIQIIQQIIQ", magic, version, 0, 0, 16, size, encryption, 1, 0x30000, 0x10000, 1, 0, 0)
    return (head + struct.pack(">QQQII", incompatible, 0, 0, 4, 104)).ljust(64 * 1024, b"\0")


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [(lambda _: forge.luks(), "luks", "LUKS"), (forge.encrypted, "qcow2", "encrypted")],
    ids=["luks", "luks-in-qcow2"],
)
def test_inspection_encrypted_image(folder, make, kind, words):
    """Rejected, whether the file or only its clusters are encrypted; QEMU recognizes both as encrypted."""
    data = make(convert(folder, "-O", "qcow2"))
    (folder / "image").write_bytes(data)
    shown = subprocess.run(
        ["qemu-img", "info", "--output=json", "image"], check=True, cwd=folder, capture_output=True, text=True
    ).stdout
    assert {"format": kind, "encrypted": True}.items() <= json.loads(shown).items()
    with pytest.raises(UnsafeImageError, match=words):
        verdict(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (qcow2(version=1), "is qcow version 1, which is not read; convert it: "),
        (qcow2(incompatible=1 << 4), "has extended L2 entries, which are not read; convert it: "),
        (qcow2(incompatible=1 << 4 | 1 << 5), "unsupported features"),
        (qcow2(version=4), "unsupported features"),
        (qcow2(incompatible=1 << 0), "not closed by its last writer"),
        (qcow2(incompatible=1 << 1), "marked as corrupt"),
        (qcow2(incompatible=1 << 2), "external file"),
        (qcow2(incompatible=1 << 63), "unsupported features"),
        (qcow2(encryption=1), "encrypted"),
        (b"LUKS\xba\xbe\0\x01".ljust(4 * MIB, b"\0"), "LUKS"),
    ],
)
def test_inspection_forged_header(data, words):
    with pytest.raises(UnsafeImageError, match=words):
        verdict(data)


def test_inspection_raw_disk_with_header():
    """A raw disk with a qcow2 header is detected as qcow2; the plan then rejects it if declared as raw."""
    assert verdict(qcow2(size=1 << 63)) == ImageInfo("qcow2", 1 << 63)
    assert verdict(qcow2(size=0)) == ImageInfo("qcow2", 0)


def gpt_disk():
    disk = bytearray(4 * MIB)
    disk[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, 8191)
    disk[510:512] = b"\x55\xaa"
    disk[512:520] = b"EFI PART"
    return disk


def with_iso(disk):
    disk[32768:32774] = b"\x01CD001"
    return disk


def test_inspection_partitions_and_iso():
    """A partition table or an ISO file system is content; real images contain both."""
    assert verdict(bytes(gpt_disk())) == ImageInfo("raw", None)
    assert verdict(bytes(with_iso(gpt_disk()))) == ImageInfo("raw", None)


def test_inspection_polyglot():
    """One reader sees qcow2 and another an ISO."""
    disk = with_iso(bytearray(qcow2().ljust(4 * MIB, b"\0")))
    with pytest.raises(UnsafeImageError, match="iso and as qcow2"):
        verdict(bytes(disk))


@pytest.mark.parametrize("data", [b"", b"x", b"QFI", b"QFI\xfb" + bytes(100), bytes(511), b"text\n" * 50])
def test_inspection_short_file(data):
    """Shorter than a header is raw; no qcow2 reader accepts it either, and the plan rejects an empty image."""
    assert verdict(data) == ImageInfo("raw", None)


MAGICS = [b"QFI\xfb", b"KDMV", b"vhdxfile", b"conectix", b"LUKS\xba\xbe", b"QED\0", b"# Disk DescriptorFile\n"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MAGICS), st.binary(max_size=700), st.integers(0, 5 * MIB), st.integers(0, 63))
def test_inspection_any_header(magic, rest, length, vdi):
    """Any bytes after a magic result in a verdict or an ImageError."""
    data = bytearray((magic + rest).ljust(length, b"\0"))
    if vdi < 8 and len(data) > 68:
        data[64:68] = b"\x7f\x10\xda\xbe"
    try:
        info = verdict(bytes(data), piece=512 * 1024)
    except ImageError:
        return
    assert info is not None
    assert info.virtual_size is None or info.virtual_size >= 0


def test_inspection_vmdk_descriptor_only():
    """It is rejected, or taken as raw text; the file it names is never opened."""
    text = b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 20480 FLAT "/etc/passwd" 0\n'
    try:
        info = verdict(text.ljust(64 * 1024, b"\0"))
    except UnsafeImageError:
        return
    assert info == ImageInfo("raw", None)
