"""The fuzz targets: one function for each parser of untrusted bytes, which fails if a promise is broken.

``corpus/NAME`` has the saved inputs: some that get far into the parser, and every finding.
"""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_to_bytes

import httpx
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from werkzeug.datastructures import MultiDict

from lvp_convert_native import NativeConverter, NativeSettings
from lvp_source_file.paths import place_of as local_place_of
from lvp_source_http import HttpSettings, HttpSource
from lvp_source_s3 import S3Settings
from lvp_source_s3.addresses import place_of
from lvp_target_file import qcow2 as volume_headers
from lvp_target_lvm import report
from provisioner import registry
from provisioner.api import requests, uploads
from provisioner.config import SignatureSettings, dump, load
from provisioner.contracts import MIB, AbsolutePath, BackEndContext, Checksum, Device, ImageUrl
from provisioner.contracts.errors import (
    ConfigError,
    ImageError,
    ImageTooLargeError,
    InvalidRequestError,
    LengthRequiredError,
    ResizeError,
    SignatureError,
    TargetError,
)
from provisioner.contracts.testing import FileView
from provisioner.download import checksum_lookup
from provisioner.download.decompress import decompress
from provisioner.download.inspection import FileInspection, ImageInfo
from provisioner.download.signatures import wrapper_of
from provisioner.download.text_lines import TextLines
from provisioner.signatures import Key, cosign, minisign, openpgp, read_key

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS = Path(__file__).parent / "corpus"
# In memory if possible, because the targets write many small files.
SCRATCH = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
REGISTRY = registry.load()
PREFIX = "https://images.example.com/pub/"
HERE = BackEndContext("fuzz", Path("/nowhere"))
HTTP = HttpSource(HttpSettings(urls=[PREFIX, "http://*.example.org:*/"]), HERE)
S3 = S3Settings(endpoint="https://s3.example.com:9000", buckets=["images", "more/below/"])
DISK = 2 * MIB
MINISIGN = Key("key", "", bytes(range(8))[::-1].hex().upper(), ed25519=Ed25519PrivateKey.generate().public_key())
COSIGN = Key("key", "", "0" * 64, ecdsa=ec.generate_private_key(ec.SECP256R1()).public_key())


def read_checksums(data: bytes) -> None:
    """Parse a checksum file: the result is a digest of the right length from the file, None, or an ImageError."""
    text = data.decode("utf-8", errors="replace")
    lengths = {"sha256": 64, "sha512": 128}
    for algorithm in (*lengths, None):
        for only_file in (True, False):
            try:
                found = checksum_lookup.parse(text, algorithm, "disk.qcow2", only_file=only_file)
            except ImageError:
                continue
            if found is not None:
                assert isinstance(found, Checksum)
                assert len(found.hex) == lengths[found.algorithm]
                assert found.hex in text.lower()
    with suppress(ImageError):
        lines = TextLines()
        pieces = [piece for at in range(0, len(data), 1000) for piece in lines.feed(data[at : at + 1000])]
        assert all(isinstance(line, str) for piece in [*pieces, lines.end()] for line in piece)


def read_config(data: bytes) -> None:
    """Load a configuration: it is valid, can be dumped, and its back ends can be built; or a ConfigError."""
    with tempfile.NamedTemporaryFile(dir=SCRATCH, suffix=".toml") as file:
        file.write(data)
        file.flush()
        with suppress(ConfigError):
            config = load(Path(file.name))
            assert isinstance(dump(config), str)
            REGISTRY.build(config)


def read_urls(data: bytes) -> None:
    """Parse a url: the result agrees with the library that fetches it, and only urls below a prefix are owned."""
    text = data.decode("utf-8", errors="replace")
    try:
        url = ImageUrl.parse(text)
    except InvalidRequestError:
        return
    owned, place = HTTP.owns(url), place_of(url, S3)
    assert url.text == text or not text.isascii()  # an international host name is translated
    assert ImageUrl.parse(url.without_query).without_query == url.without_query
    assert not {".", ".."} & set(unquote(url.path).split("/"))
    if url.scheme in {"http", "https"} and (owned or place):
        fetched = httpx.URL(text if owned or place is None else place.url)
        assert fetched.host == (url.host if owned else fetched.host)
        assert not fetched.userinfo
        if owned:
            assert unquote_to_bytes(fetched.raw_path.split(b"?")[0]) == unquote_to_bytes(url.path)
            assert (fetched.port or {"http": 80, "https": 443}[fetched.scheme]) == url.port
            under = (fetched.scheme, fetched.host) == ("https", "images.example.com")
            assert (under and f"{fetched.path}/".startswith("/pub/")) or fetched.host.endswith(".example.org")
        else:
            assert fetched.host == "s3.example.com" or fetched.host.endswith(".s3.example.com")
            assert fetched.port == 9000
    local = local_place_of(url, ["/srv/images"])
    if local is not None:
        assert (url.scheme, url.host, owned, place) == ("file", "", False, None)
        assert not {b"", b".."} & set(local.path.split(b"/"))
        assert b"\0" not in local.path
    if place is not None:
        assert place.bucket == "images" or f"{place.bucket}/{place.key}".startswith("more/below/")


def read_lvm_report(data: bytes) -> None:
    """Parse an LVM report: every field of every volume is readable, or a TargetError."""
    try:
        group, volumes = report.read(data.decode("utf-8", errors="replace"))
    except TargetError:
        return
    assert group is None or group.extent_size >= 1
    for name, volume in volumes.items():
        assert volume.name == name
        assert isinstance(volume.noted, dict)
        assert volume.ours in {True, False}
        assert volume.is_pool in {True, False}
        assert volume.data_percent is None or 0 <= volume.data_percent <= 100


def read_requests(data: bytes) -> None:
    """Parse a request's body and query: the result is within the limits, or an InvalidRequestError."""
    for kind in (requests.JobRequest, requests.FetchRequest):
        with suppress(InvalidRequestError):
            asked = requests.read_body(data, kind)
            assert asked.spec().image_url
            assert len(asked.image_url) <= 4096
    query = MultiDict(httpx.QueryParams(data.decode("utf-8", errors="replace")).multi_items())
    with suppress(InvalidRequestError):
        requests.check_query(query, requests.JobPage)
        page = requests.read_query(query, requests.JobPage)
        assert 1 <= page.limit <= 1000
        assert page.wanted() is not None


def inspect_images(data: bytes) -> None:
    """Inspect the beginning of a file: a known format and no negative size, or an ImageError."""
    inspection, info = FileInspection(), None
    with suppress(ImageError):
        for start in range(0, len(data), 65536):
            info = info or inspection.feed(data[start : start + 65536], last=False)
        info = info or inspection.feed(b"", last=True) or ImageInfo("raw", None)
        assert info.virtual_size is None or info.virtual_size >= 0
        assert info.format in {"raw", "qcow2", "vmdk", "vhdx", "vdi", "vpc"}


def decompress_images(data: bytes) -> None:
    """Decompress a file: the result is within the limit, or an ImageError."""
    compression = wrapper_of(data)
    if compression is None:
        return
    _decompress(compression, data)


def extract_archives(data: bytes) -> None:
    """Extract the disk of an archive: the result is within the limit, or an ImageError."""
    if data.startswith(b"PK"):
        _decompress("zip", data)
        return
    archive = bytearray(data)
    for at in range(0, min(len(archive), 16 * 512) - 511, 512):  # the checksum would hide all that is behind it
        archive[at + 148 : at + 156] = b" " * 8
        archive[at + 148 : at + 156] = b"%06o\0 " % sum(archive[at : at + 512])
    _decompress("tar", bytes(archive) + bytes(1024))


def _decompress(packing: str, data: bytes) -> None:
    with tempfile.TemporaryFile(dir=SCRATCH) as file, suppress(ImageError, ImageTooLargeError):
        size = decompress(packing, io.BytesIO(data), file.fileno(), 8 * MIB, 0)
        assert os.fstat(file.fileno()).st_size == size <= 8 * MIB


def convert_qcow2(data: bytes) -> None:
    """Convert a qcow2 image with the native converter: the disk keeps its size; an ImageError is allowed."""
    size = int.from_bytes(data[24:32])
    if not 0 < size <= DISK:
        size = DISK
    with tempfile.NamedTemporaryFile(dir=SCRATCH) as image, tempfile.NamedTemporaryFile(dir=SCRATCH) as device:
        image.write(data)
        image.flush()
        device.truncate(DISK)
        converter = NativeConverter(NativeSettings(), HERE)

        async def convert() -> None:
            with FileView(Path(image.name), "qcow2", size) as view:
                await converter.convert(view, Device(device.name, DISK, reads_zero=True), lambda _: None)

        with suppress(ImageError):
            trio.run(convert)
        assert os.fstat(device.fileno()).st_size == DISK


def read_signatures(data: bytes) -> None:
    """Parse a key file, a signature and gpgv's report: nothing is a signature of other bytes."""
    with tempfile.NamedTemporaryFile(dir=SCRATCH) as file:
        file.write(data)
        file.flush()
        path = AbsolutePath(file.name)
        for kind in ("minisign", "cosign"):
            with suppress(SignatureError):
                read_key(SignatureSettings(kind=kind, public_key=path))
        with suppress(SignatureError):
            assert read_key(SignatureSettings(kind="openpgp", keyring=path)).ring
    for parse, key in ((minisign.parse, MINISIGN), (cosign.parse, COSIGN)):
        try:
            parse(data, key, "S").check_text(b"other bytes", key, "S")
        except SignatureError:
            continue
        raise AssertionError("it counts as a signature")
    report = openpgp.parse_status(data.decode(errors="replace"))
    with suppress(SignatureError):
        assert openpgp.judge(report, MINISIGN, "S").key
    assert all(verdict.name.isprintable() for verdict in report.verdicts)
    openpgp.is_clear_signed(data)


def read_content_ranges(data: bytes) -> None:
    """Parse a Content-Range with the length of its body: a part that ends where the image does, or an error."""
    text, _, length = data.decode("latin-1").partition("\n")
    number = int(length) if length.isascii() and length.isdecimal() and len(length) < 25 else None
    try:
        start, size = uploads.part_of(text or None, number)
    except (InvalidRequestError, LengthRequiredError):
        return
    assert number is not None
    assert 0 <= start <= size < 2**63
    assert size > 0
    assert size - start == number


def read_volume_headers(data: bytes) -> None:
    """Read the header of a qcow2 volume and grow it: only its size changes, or a ResizeError."""
    fd = os.memfd_create("volume")
    try:
        os.write(fd, data)
        header = volume_headers.read_header(fd)
        wanted = 1024 * MIB if header is None else min(header.size + MIB, 2**63)
        with suppress(ResizeError):
            volume_headers.grow(fd, wanted)
            changed = data[:24] + wanted.to_bytes(8) + data[32:]
            assert os.pread(fd, len(data) + 1, 0) == changed
            return
        assert os.pread(fd, len(data) + 1, 0) == data
    finally:
        os.close(fd)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "checksums": read_checksums,
    "config": read_config,
    "urls": read_urls,
    "lvm-report": read_lvm_report,
    "requests": read_requests,
    "content-ranges": read_content_ranges,
    "inspection": inspect_images,
    "decompress": decompress_images,
    "archives": extract_archives,
    "qcow2": convert_qcow2,
    "volume-headers": read_volume_headers,
    "signatures": read_signatures,
}
# Words to insert into inputs for a target.
WORDS: dict[str, list[bytes]] = {
    "checksums": [b"SHA256 (", b") = ", b" *", b"  ", b"\\", b"\xef\xbb\xbf", b"./", b"disk.qcow2", b"a" * 64, b"\x85"],
    "config": [
        b"[sources.x]\n", b'plugin = "http"\n', b"urls = [", b"'''", b"inf", b"1979-05-27", b"[[", b"= {", b"[" * 99,
    ],
    "urls": [
        b"%2e", b"%2E%2e", b"..", b"@", b":", b"[::1]", b"\\", b"//", b"%00", b"?", b"#", b"*.", b"%25", b";", b"\t",
    ],
    "lvm-report": [b'"lv_tags":"', b"lvp.", b"&", b'"vg_size":', b"-1", b"[" * 99, b"1e999", b"\\u0000", b"null"],
    "requests": [b'"checksum":', b"null", b"1e999", b"[" * 99, b"{", b"&limit=", b"\\ud800", b"-0", b"%ff"],
    "content-ranges": [b"bytes ", b"*/", b"-", b"/", b"0", b"9" * 19, b"\n", b"\xb2", b"+1"],
    "inspection": [
        b"QFI\xfb", b"KDMV", b"vhdxfile", b"conectix", b"LUKS\xba\xbe", b"\x7f\x10\xda\xbe", b"CD001", b"\x1f\x8b\x08",
    ],
    "decompress": [b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"BZh9", b"1AY&SY", b"YZ", b"\x50\x2a\x4d\x18",
                   b"\x04\x22\x4d\x18"],
    "archives": [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x07\x08", b"\xff" * 4, b"x", b"S",
                 b"L", b"GNU.sparse.major=1", b"size=", b"../", b"7777777", b"\x80" + bytes(10), b"\x01\0"],
    "signatures": [
        b"[GNUPG:] ", b"GOODSIG ", b"VALIDSIG ", b"NEWSIG\n", b"RWQ", b"RUQ", b"[" * 99, b'"', b"null", b"%0A",
    ],
    "volume-headers": [b"QFI\xfb", bytes(8), b"\xff" * 8, (1).to_bytes(4), (1 << 62).to_bytes(8), b"/x.raw"],
    "qcow2": [entry.to_bytes(8) for entry in (1, 1 << 62, 1 << 63, 1 << 63 | 65536, 1 << 63 | 512, 2**64 - 1)],
}  # fmt: skip


def saved_inputs(name: str) -> list[Path]:
    """Return the saved inputs of a target."""
    return sorted((CORPUS / name).iterdir())
