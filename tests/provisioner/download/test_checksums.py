"""Checksum files: the formats in use, and the order of the lookup."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.contracts import Checksum, ImageUrl
from provisioner.contracts.errors import ImageError, RemoteDeniedError, RemoteUnavailableError
from provisioner.contracts.testing import FakeSource
from provisioner.download.checksums import MAX_TEXT, discover, parse

A, B = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()
LONG = hashlib.sha512(b"a").hexdigest()
NAME = "disk.qcow2"
URL = "https://images.example.com/pub/disk.qcow2"


@pytest.mark.parametrize(
    "text",
    [
        A,
        f"{A}\n",
        f"\ufeff{A}\r\n",
        A.upper(),
        f"{A}  {NAME}",
        f"{A} *{NAME}",
        f"{A}\t{NAME}",
        f"{A}  ./{NAME}",
        f"{A}  some/where/{NAME}",
        f"{A}  -",
        f"SHA256 ({NAME}) = {A}",
        f"SHA256 (./{NAME}) = {A.upper()}",
        f"\\{A}  {NAME}",
        f"{B}  other.img\n{A}  {NAME}\n",
        f"{A}  {NAME}\n{A}  {NAME}\n",
        f"# {NAME}: 12 bytes\nSHA512 ({NAME}) = {LONG}\nSHA256 ({NAME}) = {A}\n",
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{A} *{NAME}\n-----BEGIN PGP SIGNATURE-----\n",
        f"{LONG}  {NAME}\n{A}  {NAME}",
    ],
)
def test_parse_sidecar(text):
    """The image's digest is found in any format, and returned in lower case."""
    assert parse(text, "sha256", NAME, only_file=True) == Checksum("sha256", A)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "contains no sha256 digest"),
        ("<html>no such file</html>", "contains no sha256 digest"),
        (A[:-1], "contains no sha256 digest"),
        (f"{A}0", "contains no sha256 digest"),
        (LONG, "contains no sha256 digest"),
        (f"{A}  other.qcow2", "names other.qcow2, not disk.qcow2"),
        (f"{A}\n{B}\n", "more than one digest"),
        (f"{A}  {NAME}\n{B}  {NAME}\n", "more than one digest"),
        (f"{A}  x/{NAME}\n{B}  y/{NAME}\n", "more than one digest"),
    ],
)
def test_parse_sidecar_useless(text, words):
    """A sidecar without a usable digest is an error; ignoring it would bypass the check."""
    with pytest.raises(ImageError, match=words):
        parse(text, "sha256", NAME, only_file=True)


def test_parse_sums_file():
    """A bare digest belongs to no file, and an unlisted image has no checksum."""
    assert parse(A, "sha256", NAME, only_file=False) is None
    assert parse(f"{A}  other.img", "sha256", NAME, only_file=False) is None
    assert parse(f"{B}  other.img\n{A}  {NAME}", "sha256", NAME, only_file=False) == Checksum("sha256", A)


def test_parse_same_name_in_folders():
    """A SHA256SUMS of a directory tree lists the same name several times; the file beside it wins."""
    text = f"{B}  old/{NAME}\n{A}  ./{NAME}\n"
    assert parse(text, "sha256", NAME, only_file=False) == Checksum("sha256", A)


@given(st.text(alphabet=st.sampled_from(f"{A}{NAME} *()=\n\r\t\\/.-S\0\u2028é"), max_size=300), st.booleans())
def test_parse_any_text(text, only_file):
    """Any text results in a digest, None or ImageError."""
    try:
        found = parse(text, "sha256", NAME, only_file=only_file)
    except ImageError:
        return
    assert found is None or len(found.hex) == 64


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.sampled_from([NAME, "x.img", f"d/{NAME}"]), st.booleans())))
def test_parse_any_lines(lines):
    """The result is a digest that a line lists for this name."""
    text = "\n".join(f"SHA256 ({name}) = {hex_}" if bsd else f"{hex_}  {name}" for hex_, name, bsd in lines)
    given_it = {hex_ for hex_, name, _ in lines if name.endswith(NAME)}
    try:
        found = parse(text, "sha256", NAME, only_file=False)
    except ImageError:
        assert given_it == {A, B}
        return
    assert (found is None) == (not given_it)
    assert found is None or found.hex in given_it


SIDE_256, SIDE_512 = f"{URL}.sha256", f"{URL}.sha512"
SUMS_256, SUMS_512 = (URL.replace(NAME, f"SHA{bits}SUMS") for bits in (256, 512))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({SIDE_256: A, SIDE_512: LONG, SUMS_256: f"{B}  {NAME}"}, Checksum("sha256", A)),
        ({SIDE_512: LONG, SUMS_256: f"{B}  {NAME}"}, Checksum("sha512", LONG)),
        ({SUMS_256: f"{B}  {NAME}", SUMS_512: f"{LONG}  {NAME}"}, Checksum("sha256", B)),
        ({SUMS_256: f"{B}  other", SUMS_512: f"{LONG}  {NAME}"}, Checksum("sha512", LONG)),
        ({SUMS_256: f"{B}  other"}, None),
    ],
)
async def test_discover_order(files, expected):
    """The sidecar comes first; a query, such as a signature, is not part of its name."""
    source = FakeSource({URL: b"image", **{url: text.encode() for url, text in files.items()}})
    assert await discover(source, ImageUrl.parse(f"{URL}?token=x")) == expected
    assert source.open_now == 0


async def test_discover_denied_or_down():
    """Stores report missing objects as denied; a server that is down does not count as "no checksum"."""
    source = FakeSource({URL: b"image"}, fail_at={"open": RemoteDeniedError("no")})
    assert await discover(source, ImageUrl.parse(URL)) is None
    source = FakeSource({URL: b"image"}, fail_at={"open": RemoteUnavailableError("down")})
    with pytest.raises(RemoteUnavailableError):
        await discover(source, ImageUrl.parse(URL))


async def test_discover_huge_sidecar():
    source = FakeSource({URL: b"image", SIDE_256: b"x" * (3 * MAX_TEXT)})
    with pytest.raises(ImageError, match="too large for a checksum file"):
        await discover(source, ImageUrl.parse(URL))
    assert source.bytes_given <= MAX_TEXT + source.chunk_size
    assert source.open_now == 0
