"""Files that are not disks are rejected with their type; possible disks are accepted."""

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess

import lz4.frame
import pytest
import zstandard

from provisioner.contracts import MIB
from provisioner.contracts.errors import UnsafeImageError
from provisioner.download.inspection import FileInspection, ImageInfo
from provisioner.download.signatures import not_a_disk

# Matches no signature.
NOISE = bytes(range(251)) * 900
DISK = bytes(446) + b"\x80\0\1\0\x83\0\xff\xff\0\x08\0\0\0\x10\0\0" + bytes(48) + b"\x55\xaa" + NOISE


def verdict(data, piece=64 * 1024):
    """Inspect as the hashing thread does: piece by piece, then the end."""
    inspection = FileInspection()
    for start in range(0, len(data), piece):
        info = inspection.feed(data[start : start + piece], last=False)
        if info is not None:
            return info
    return inspection.feed(b"", last=True) or ImageInfo("raw", None)


ARCHIVES = {
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c\x00\x04" + NOISE, "a 7z archive"),
    "rar": (lambda: b"Rar!\x1a\x07\x01\x00" + NOISE, "a rar archive"),
    "lz4-legacy": (lambda: b"\x02\x21\x4c\x18" + NOISE, "compressed with lz4 in its legacy format"),
    "zip-empty": (lambda: b"PK\5\6" + bytes(18), "an empty zip archive"),
    "zip-in-parts": (lambda: b"PK\7\x08PK\3\4" + NOISE, "a zip archive in several parts"),
    "lzip": (lambda: b"LZIP\1" + NOISE, "compressed with lzip"),
    "lzop": (lambda: b"\x89LZO\x00\r\n\x1a\n" + NOISE, "compressed with lzop"),
    "compress": (lambda: b"\x1f\x9d\x90" + NOISE, "compressed with compress"),
    "cpio": (lambda: b"070701" + NOISE, "a cpio archive"),
    "deb": (lambda: b"!<arch>\ndebian-binary   " + NOISE, "an ar archive"),
    "rpm": (lambda: b"\xed\xab\xee\xdb\3\0" + NOISE, "an rpm package"),
    "wim": (lambda: b"MSWIM\0\0\0\xd0" + NOISE, "a wim archive"),
    "html": (lambda: b"\n <!DOCTYPE html><html><body>Sign in</body></html>\n" * 40, "an HTML page"),
    "html-with-mark": (lambda: b"\xef\xbb\xbf<HTML>\xc3\xa9" + NOISE, "an HTML page"),
    "pdf": (lambda: b"%PDF-1.7\n%\xe2\xe3" + NOISE, "a PDF document"),
    "json": (lambda: b'{"error": "not found"}', "a text file"),
    "xml": (lambda: b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "a text file"),
    "git-lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12345\n", "a text file"),
    "sums": (lambda: (64 * b"a" + b"  disk.raw\n") * 99, "a text file"),
    "elf": (lambda: b"\x7fELF\2\1\1" + NOISE, "a program"),
    "android-sparse": (lambda: b"\x3a\xff\x26\xed\1\0" + NOISE, "an Android sparse image"),
    "parallels": (lambda: b"WithouFreSpacExt" + NOISE, "a Parallels disk image"),
    "vma": (lambda: b"VMA\0\0\0\0\1" + NOISE, "a Proxmox backup"),
}  # fmt: skip
PACKERS = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "lz4": lz4.frame.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archive_is_rejected_by_type(kind):
    make, words = ARCHIVES[kind]
    for piece in (64 * 1024, 100):
        with pytest.raises(UnsafeImageError, match=f"^this is {words}.*, not a disk image; "):
            verdict(make(), piece)


@pytest.mark.parametrize("tool", PACKERS)
@pytest.mark.parametrize("kind", ["7z", "rar", "html", "git-lfs"])
def test_archive_inside_compression(kind, tool):
    make, words = ARCHIVES[kind]
    with pytest.raises(UnsafeImageError, match=f"^this is {words} inside {tool}, not a disk image; "):
        verdict(PACKERS[tool](make()))


@pytest.mark.parametrize("tool", PACKERS)
@pytest.mark.parametrize("inner", PACKERS)
def test_compressed_twice(inner, tool):
    with pytest.raises(UnsafeImageError, match="compressed twice"):
        verdict(PACKERS[tool](PACKERS[inner](DISK)))


def skippable(content, number=0):
    return struct.pack("<II", 0x184D2A50 + number, len(content)) + content


@pytest.mark.parametrize("content", [b"\0\1\2\3", bytes(5000), b""], ids=["as-pzstd", "long", "empty"])
def test_zstd_with_skippable_frames_first(content):
    packed = skippable(content) + skippable(content, 15) + PACKERS["zstd"](DISK)
    assert verdict(packed) == ImageInfo("raw", None, "zst")


def test_lz4_with_skippable_frames_first():
    assert verdict(skippable(b"abcd") + lz4.frame.compress(DISK)) == ImageInfo("raw", None, "lz4")


# `make check` does not need pzstd installed.
@pytest.mark.slow
def test_pzstd(tmp_path):
    (tmp_path / "disk").write_bytes(DISK)
    subprocess.run(["pzstd", "-q", "-p", "2", "disk"], check=True, cwd=tmp_path)
    assert verdict((tmp_path / "disk.zst").read_bytes()) == ImageInfo("raw", None, "zst")


def made_by(tmp_path, tool, *arguments, size=64 * MIB):
    """Return a file system without a partition table."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(
        [shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin"), *arguments, path], check=True, capture_output=True
    )
    return path.read_bytes()


@pytest.mark.parametrize(
    ("tool", "arguments", "size"),
    [("mkfs.ext4", ["-q", "-F"], 8 * MIB), ("mkfs.xfs", ["-q", "-f"], 300 * MIB), ("mkswap", [], 8 * MIB)],
)
def test_file_system_passes(tmp_path, tool, arguments, size):
    assert verdict(made_by(tmp_path, tool, *arguments, size=size)[: 8 * MIB]) == ImageInfo("raw", None)


ISO = bytearray(40 * 2048)
ISO[0x8000:0x8006] = b"\x01CD001"
GPT = bytearray(40 * 512)
GPT[446:512] = b"\0\0\2\0\xee\xff\xff\xff\1\0\0\0\xff\xff\0\0" + bytes(48) + b"\x55\xaa"
GPT[512:520] = b"EFI PART"


@pytest.mark.parametrize(
    "disk",
    [
        DISK, bytes(8 * MIB), NOISE, b"x" * MIB, b"", b"\0", ISO, GPT, b"\xeb\x3c\x90MSDOS5.0" + NOISE,
        b"\xeb\x63\x90" + NOISE, b"hsqs" + NOISE, bytes(1024) + NOISE, b"SunOS label text" + bytes(496) + NOISE,
        b"\x1f\x9d" + DISK[2:], b"\x5d\0\0\x80\0" + bytes(8) + DISK[13:],
    ],
    ids=[
        "mbr", "zeros", "noise", "one-letter", "empty", "one-byte", "iso", "gpt", "fat", "grub", "squashfs", "late",
        "sun-label", "boot-code-like-compress", "boot-code-like-lzma",
    ],
)  # fmt: skip
def test_disk_passes(disk):
    assert verdict(bytes(disk)) == ImageInfo("raw", None)


def test_vmdk_descriptor_is_not_text():
    """The VMDK checks reject it with a more specific reason."""
    assert not_a_disk(b"# Disk DescriptorFile\nversion=1\n") is None
