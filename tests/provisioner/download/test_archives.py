"""Archives with one disk yield its bytes, whatever tool wrote them; every other archive is rejected within bounds."""

import bz2
import functools
import gzip
import io
import lzma
import os
import random
import struct
import subprocess
import tarfile
import zipfile

import lz4.frame
import pytest
import zstandard

from provisioner.contracts import MIB
from provisioner.contracts.errors import CorruptImageError, ImageError, ImageTooLargeError, UnsafeImageError
from provisioner.download import archives
from provisioner.download.decompress import decompress
from provisioner.download.inspection import FileInspection, ImageInfo

pytestmark = pytest.mark.slow  # large files

PACKERS = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
    "lz4": lz4.frame.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
}


@functools.cache
def a_disk(size=3 * MIB, seed=7):
    """Return a disk with data at both ends and holes between."""
    noise = random.Random(seed).randbytes(128 * 1024)
    return bytes(512) + (noise + bytes(size - 2 * len(noise) - 512)) + noise


def extracted(data, packing, limit=64 * MIB, check=lambda: None):
    """Return the disk inside, through a file as the cache extracts it."""
    fd = os.memfd_create("disk")
    try:
        size = decompress(packing, io.BytesIO(data), fd, limit, 0, check)
        return os.pread(fd, size + 1, 0)
    finally:
        os.close(fd)


def inspected(data, piece=64 * 1024):
    """Inspect as the hashing thread does: piece by piece, then the end."""
    inspection = FileInspection()
    for start in range(0, len(data), piece):
        info = inspection.feed(data[start : start + piece], last=False)
        if info is not None:
            return info
    return inspection.feed(b"", last=True)


def used(data):
    """Inspect and extract; return the disk."""
    info = inspected(data)
    assert info.format == "raw"
    return extracted(data, info.compression)


def member(name="disk.raw", data=b"", **fields):
    header = tarfile.TarInfo(name)
    header.size = len(data)
    for key, value in fields.items():
        setattr(header, key, value)
    return header, data


def tar(*members, form=tarfile.GNU_FORMAT, **options):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form, **options) as archive:
        for header, data in members or [member(data=a_disk())]:
            archive.addfile(header, io.BytesIO(data))
    return made.getvalue()


def zipped(*members, method=zipfile.ZIP_DEFLATED, stream=False):
    """Return a zip archive; ``stream``: written to a pipe, so that the sizes follow the data."""
    made = io.BytesIO()
    out = io.BufferedWriter(Pipe(made)) if stream else made
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members or [("disk.img", a_disk())]:
            archive.writestr(name, data)
    out.flush()
    return made.getvalue()


class Pipe(io.RawIOBase):
    def __init__(self, made):
        self._made = made

    def writable(self):
        return True

    def write(self, data):
        return self._made.write(data)


# --- archives with a disk -----------------------------------------------------------------------------


def tar_v7():
    """Return a tar archive as Unix V7 wrote them, without a magic."""
    made = bytearray(tar())
    made[257:512] = bytes(255)
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made[:512])
    return bytes(made)


def an_ova():
    description = b"<?xml version='1.0'?>\n<Envelope/>\n" * 200
    return tar(
        member("vm.ovf", description), member("vm.nvram", b"\0\1\2" * 500), member("vm-disk1.vmdk", a_disk()),
        member("vm.mf", b"SHA256(vm.ovf)= 00\n"), form=tarfile.USTAR_FORMAT,
    )  # fmt: skip


def zip64_from_pipe():
    made = io.BytesIO()
    with zipfile.ZipFile(io.BufferedWriter(Pipe(made)), "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("disk.img", "w", force_zip64=True) as file:
            file.write(a_disk())
        archive.fp.flush()
    return made.getvalue()


def zip_with_comment():
    made = io.BytesIO(zipped())
    with zipfile.ZipFile(made, "a") as archive:
        archive.comment = b"built by a job" * 100
    return made.getvalue()


FORMS = {
    "tar-gnu": tar,
    "tar-pax": lambda: tar(form=tarfile.PAX_FORMAT),
    "tar-ustar": lambda: tar(form=tarfile.USTAR_FORMAT),
    "tar-v7": tar_v7,
    "tar-long-name": lambda: tar(member("images/" + "n" * 300, a_disk())),
    "tar-pax-long-name": lambda: tar(member("images/" + "n" * 300, a_disk()), form=tarfile.PAX_FORMAT),
    "tar-pax-global": lambda: tar(
        member(data=a_disk()), form=tarfile.PAX_FORMAT, pax_headers={"comment": "0123456789abcdef"}
    ),
    "tar-pax-size": lambda: tar(member(data=a_disk(), pax_headers={"size": str(3 * MIB)}), form=tarfile.PAX_FORMAT),
    "tar-folder": lambda: tar(member("./", type=tarfile.DIRTYPE), member("./disk.raw", a_disk())),
    "tar-with-texts": lambda: tar(member("README", b"Hello\n" * 9), member("d", a_disk()), member("SUMS", b"ab  d\n")),
    "tar-macos": lambda: tar(member("./._disk.raw", b"\0\5\x16\7\0\2" * 30), member("./disk.raw", a_disk())),
    "ova": an_ova,
    "zip": zipped,
    "zip-stored": lambda: zipped(method=zipfile.ZIP_STORED),
    "zip-folder": lambda: zipped(("images/", b""), ("images/disk.img", a_disk())),
    "zip-from-pipe": lambda: zipped(stream=True),
    "zip64-from-pipe": zip64_from_pipe,
    "zip-comment": zip_with_comment,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_archive_with_one_disk(form):
    data = FORMS[form]()
    assert inspected(data, piece=100_001).compression == ("zip" if form.startswith("zip") else "tar")
    assert used(data) == a_disk()


@pytest.mark.parametrize("packer", PACKERS)
def test_tar_inside_compression(packer):
    packed = PACKERS[packer](an_ova())
    assert inspected(packed) == ImageInfo("raw", None, f"tar.{packer}")
    assert used(packed) == a_disk()


@pytest.mark.parametrize("packer", PACKERS)
def test_compressed_disk_inside_archive(packer):
    """An OVA may contain its disk as gzip; some publishers put an xz into a zip."""
    packed = PACKERS[packer](a_disk())
    assert inspected(tar(member("disk.x", packed))) == ImageInfo("raw", None, f"{packer}.tar")
    assert used(tar(member("disk.x", packed))) == a_disk()
    assert used(zipped(("disk.x", packed))) == a_disk()


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "posix", "ustar", "v7"])
@pytest.mark.parametrize("options", [[], ["--sparse"], ["--sparse", "--hole-detection=raw"]], ids=" ".join)
def test_tar_tool(tmp_path, form, options):
    """GCE's images are made with --format=oldgnu --sparse."""
    if options and form in {"ustar", "v7"}:
        options = []  # they have no sparse files
    with (tmp_path / "disk.raw").open("wb") as file:
        for number in range(60):
            file.seek(number * 64 * 1024)
            file.write(random.Random(number).randbytes(4096))
        file.truncate(5 * MIB)
    subprocess.run(["tar", f"--format={form}", *options, "-cf", "disk.tar", "disk.raw"], check=True, cwd=tmp_path)
    data = (tmp_path / "disk.tar").read_bytes()
    if options:
        assert len(data) < MIB
    assert used(data) == (tmp_path / "disk.raw").read_bytes()


def test_archive_is_extracted_sparsely(tmp_path):
    with (tmp_path / "disk").open("w+b") as file:
        assert decompress("tar", io.BytesIO(tar()), file.fileno(), 4 * MIB, 0) == len(a_disk())
        assert os.fstat(file.fileno()).st_blocks * 512 < 2 * MIB


# --- archives without one disk ------------------------------------------------------------------------


def patched(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def resummed(data, at=0):
    """Return the archive with a valid checksum in the tar header at ``at``."""
    header = bytearray(data[at : at + 512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return patched(data, at, bytes(header))


def with_field(at, new, data=None):
    return resummed(patched(tar() if data is None else data, at, new))


def number12(value):
    return tarfile.itn(value, 12, tarfile.GNU_FORMAT)


def extended(kind, size):
    """Return an archive whose first header is an extended one of ``size`` bytes."""
    return with_field(156, kind, with_field(124, number12(size)))


def encrypted(data):
    return patched(patched(data, 6, b"\1\0"), data.index(b"PK\1\2") + 8, b"\1\0")


def zip_link():
    link = zipfile.ZipInfo("disk.img")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    return zipped((link, "/etc/passwd"))


def zip_contradiction(at, new):
    data = zipped()
    return patched(data, data.index(b"PK\1\2") + at, new)


def gnu_sparse(*extents, real, data=b"", more=b""):
    """Return a tar archive with a sparse file in GNU's old format."""
    header, _ = member(data=data)
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = b"S"
    for number, pair in enumerate(extents):
        block[386 + 24 * number : 410 + 24 * number] = b"".join(map(number12, pair))
    block[482] = bool(more)
    block[483:495] = number12(real)
    return resummed(bytes(block)) + more + data + bytes(-len(data) % 512) + bytes(1024)


def pax_sparse(map_text, real, data=b"", version="1"):
    records = {"GNU.sparse.major": version, "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(real)}
    stored = map_text.encode().ljust(-(-len(map_text) // 512) * 512, b"\0") + data
    return tar(member("GNUSparseFile.0/disk", stored, pax_headers=records), form=tarfile.PAX_FORMAT)


A, B = member("a.raw", a_disk()), member("b.raw", a_disk())
ROOT = "../../etc/cron.d/job"

REJECTED = {
    "two disks": (lambda: tar(A, B), r"more than one disk image \(a.raw and b.raw\)"),
    "two disks in zip": (lambda: zipped(("a", a_disk()), ("b", a_disk())), r"more than one file \(a and b\)"),
    "readme in zip": (lambda: zipped(("README", b"text\n" * 99), ("b", a_disk())), r"one file \(README and b\)"),
    "many entries": (lambda: tar(*[member(f"{n}.txt", b"text\n") for n in range(300)]), "more than 256 members"),
    "many entries in zip": (lambda: zipped(*[(f"{n}/", b"") for n in range(300)]), "more than 256 members"),
    "only texts": (lambda: tar(member("vm.ovf", b"<Envelope/>" * 200)), "contains no disk image"),
    "only an empty file": (lambda: tar(member("disk.raw")), "contains no disk image"),
    "only folders in zip": (lambda: zipped(("images/", b"")), "contains no file"),
    "path": (lambda: tar(member(ROOT, a_disk())), r"unsafe path \.\./\.\./etc"),
    "absolute path": (lambda: tar(member("/dev/sda", a_disk())), "unsafe path /dev/sda"),
    "path in zip": (lambda: zipped((ROOT, a_disk())), "unsafe path"),
    "path with backslashes": (lambda: zipped(("..\\disk.img", a_disk())), "unsafe path"),
    "symbolic link": (
        lambda: tar(member("disk.raw", type=tarfile.SYMTYPE, linkname="/etc/shadow")), r"a link \(disk.raw\)",
    ),
    "hard link": (lambda: tar(A, member("b", type=tarfile.LNKTYPE, linkname="a.raw")), r"a link \(b\)"),
    "link in zip": (zip_link, "contains a link"),
    "device": (lambda: tar(member("disk.raw", type=tarfile.BLKTYPE)), "a device or pipe"),
    "pipe": (lambda: tar(member("disk.raw", type=tarfile.FIFOTYPE)), "a device or pipe"),
    "multi-volume": (lambda: with_field(156, b"M"), "unsupported type"),
    "html in tar": (lambda: tar(member("disk.raw", b"<html>" * 300)), "contains no disk image"),
    "html in zip": (lambda: zipped(("disk.raw", b"<html>" * 300)), "an HTML page inside a zip archive"),
    "7z in tar": (lambda: tar(member("d", b"7z\xbc\xaf\x27\x1c" + a_disk())), "a 7z archive inside a tar archive"),
    "qcow2 with backing file": (lambda: zipped(("d", backed())), "backing file"),
    "encrypted zip": (lambda: encrypted(zipped()), "is encrypted"),
    "zip with lzma": (lambda: zipped(method=zipfile.ZIP_LZMA), "uses lzma; create it with deflate"),
    "zip with bzip2": (lambda: zipped(method=zipfile.ZIP_BZIP2), "uses bzip2"),
    "zip of unknown length": (lambda: zipped(method=zipfile.ZIP_STORED, stream=True), "its file's length"),
    "other name in directory": (lambda: zip_contradiction(46, b"other"), "directory contradicts its files"),
    "other size in directory": (lambda: zip_contradiction(24, b"\1\2"), "directory contradicts its files"),
    "other offset in directory": (lambda: zip_contradiction(42, b"\1"), "directory contradicts its files"),
    "encrypted in directory": (lambda: zip_contradiction(8, b"\1"), "directory contradicts its files"),
    "two zips": (lambda: zipped() + zipped(), "other data follows the zip archive"),
    "tar in tar": (lambda: tar(member("d.tar", tar())), "an archive inside another archive"),
    "zip in tar": (lambda: tar(member("d.zip", zipped())), "an archive inside another archive"),
    "tar in gz in tar": (lambda: tar(member("d.tgz", gzip.compress(tar()))), "an archive inside another archive"),
    "gz in tar in gz": (lambda: gzip.compress(tar(member("d", gzip.compress(a_disk())))), "compressed twice"),
    "gz in gz": (lambda: gzip.compress(gzip.compress(a_disk())), "compressed twice"),
    "sparse gz in tar": (lambda: gnu_sparse((0, 512), real=2**60, data=gzip.compress(a_disk())[:512]), "sparse file"),
    "sparse 0.1": (lambda: pax_sparse("", 9, a_disk(), version="0"), "old sparse format"),
    "long pax header": (lambda: extended(b"x", 2**40), "more than 1 MiB"),
    "long name": (lambda: extended(b"L", 2**40), "more than 1 MiB"),
    "global size": (
        lambda: tar(member(data=a_disk()), form=tarfile.PAX_FORMAT, pax_headers={"size": "512"}), "global header",
    ),
    "endless sparse map": (lambda: pax_sparse(f"{2**50}\n", 2**60, a_disk()), "more than 1048576 parts"),
}  # fmt: skip


def backed():
    return struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 512, 9, 16, MIB).ljust(512, b"\0") + b"/etc/shad".ljust(MIB, b"\0")


@pytest.mark.parametrize("kind", REJECTED)
def test_archive_rejected(kind):
    make, words = REJECTED[kind]
    with pytest.raises(UnsafeImageError, match=words):
        used(make())


CORRUPT = {
    "damaged header": (lambda: tar(member("a/", type=tarfile.DIRTYPE), A)[:512] + b"x" * 9999, "header is damaged"),
    "negative size": (lambda: with_field(124, number12(-512)), "size is negative"),
    "malformed pax": (lambda: extended(b"x", 100), "malformed"),
    "extents out of order": (lambda: gnu_sparse((512, 512), (0, 512), real=4096, data=b"x" * 1024), "out of order"),
    "extents overlap": (lambda: gnu_sparse((0, 512), (511, 513), real=4096, data=b"x" * 1025), "out of order"),
    "extents past the end": (lambda: gnu_sparse((4096, 512), real=4096, data=b"x" * 512), "contradicts its size"),
    "extents too long": (lambda: gnu_sparse((0, 1024), real=4096, data=b"x" * 512), "contradicts its size"),
    "malformed extent": (lambda: gnu_sparse(real=4096, more=b"x" * 24 + bytes(488)), "malformed number"),
    "map without end": (lambda: pax_sparse("7" * 600, 4096), "map is"),
    "map longer than data": (lambda: pax_sparse("9\n0\n1\n", 4096), "map is"),
    "flipped byte in zip": (lambda: flipped(zipped(method=zipfile.ZIP_STORED)), "checksum or the length"),
    "flipped byte from pipe": (lambda: flipped(zipped(stream=True)), "."),
    "unknown record in zip": (lambda: patched(zipped(), zipped().index(b"PK\1\2"), b"PK\6\x08"), "unknown record"),
}  # fmt: skip


def flipped(data):
    return patched(data, 1_000 + 30, bytes([data[1_030] ^ 255]))


@pytest.mark.parametrize("kind", CORRUPT)
def test_archive_corrupt(kind):
    make, words = CORRUPT[kind]
    with pytest.raises(CorruptImageError, match=words):
        used(make())


@pytest.mark.parametrize("make", [tar, an_ova, zipped, lambda: zipped(stream=True)], ids=["tar", "ova", "zip", "pipe"])
@pytest.mark.parametrize("packer", [None, "gz", "zst"])
def test_archive_truncated(make, packer):
    data = make() if packer is None else PACKERS[packer](make())
    info = inspected(data)
    for left in [len(data) * part // 10 for part in range(1, 10)] + ([len(data) - 10240] if make is an_ova else []):
        with pytest.raises(ImageError, match=r"ends too early|contains no disk|checksum|member's header"):
            extracted(data[:left], info.compression)


@pytest.mark.parametrize("form", ["tar", "zip", "gz"])
def test_archive_bomb(form):
    """It ends at the volume's size, however much the archive would yield."""
    if form == "tar":
        data = gnu_sparse((0, 512), real=2**60, data=b"x" * 512)
    else:
        content = b"x" + bytes(80 * MIB)
        data = zipped(("d", content)) if form == "zip" else gzip.compress(tar(member(data=content)))
    with pytest.raises(ImageTooLargeError, match="more than the 64MiB that would fit"):
        used(data)


@pytest.mark.parametrize("where", ["before", "after", "padding"])
def test_archive_bytes_beside_the_disk(where, monkeypatch):
    """A compressed archive can hide any number of bytes where they are not written."""
    monkeypatch.setattr(archives, "MAX_BESIDE", 2 * MIB)
    beside, disk = member("notes.txt", b"text\n" * 500_000), member(data=a_disk())
    data = {"before": tar(beside, disk), "after": tar(disk, beside), "padding": tar(disk) + bytes(3 * MIB)}[where]
    with pytest.raises(UnsafeImageError, match="more than 2 MiB beside the disk image"):
        extracted(gzip.compress(data), "tar.gz")


class Stopped(BaseException):
    """Like trio.Cancelled, not an Exception."""


@pytest.mark.parametrize("form", ["holes", "skipped", "padding", "deflated"])
def test_archive_cancel(form):
    """``check`` is called all the time, whatever the archive contains."""
    data, packing = {
        "holes": lambda: (gnu_sparse((0, 512), real=2**60, data=b"x" * 512), "tar"),
        "skipped": lambda: (gzip.compress(tar(member("n.txt", b"text\n" * 10**7))), "tar.gz"),
        "padding": lambda: (gzip.compress(tar() + bytes(50 * MIB)), "tar.gz"),
        "deflated": lambda: (zipped(("d", bytes(50 * MIB))), "zip"),
    }[form]()
    calls = 0

    def check():
        nonlocal calls
        calls += 1
        if calls > 20:
            raise Stopped

    with pytest.raises(Stopped):
        extracted(data, packing, limit=2**60, check=check)


def test_archive_disk_too_far_inside():
    """Only so much is looked at before the format is decided."""
    data = tar(*[member(f"{n}.nvram", random.Random(n).randbytes(3 * MIB)) for n in range(3)], member(data=a_disk()))
    with pytest.raises(UnsafeImageError, match="no disk image inside a tar archive within its first 8 MiB"):
        inspected(data)
