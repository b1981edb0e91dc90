"""Checksum texts: every form people publish, and the order in which they are looked for."""

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
def test_forms_of_a_sidecar(text):
    """Whatever the form, the digest of the image is found, in lower case."""
    assert parse(text, "sha256", NAME, only_file=True) == Checksum("sha256", A)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no sha256 digest"),
        ("<html>no such file</html>", "holds no sha256 digest"),
        (A[:-1], "holds no sha256 digest"),
        (f"{A}0", "holds no sha256 digest"),
        (LONG, "holds no sha256 digest"),
        (f"{A}  other.qcow2", "names other.qcow2, not disk.qcow2"),
        (f"{A}\n{B}\n", "more than one digest"),
        (f"{A}  {NAME}\n{B}  {NAME}\n", "more than one digest"),
        (f"{A}  x/{NAME}\n{B}  y/{NAME}\n", "more than one digest"),
    ],
)
def test_a_sidecar_that_does_not_tell(text, words):
    """A sidecar that is there and no help is an error: silence about it would be a way around it."""
    with pytest.raises(ImageError, match=words):
        parse(text, "sha256", NAME, only_file=True)


def test_a_sums_file_is_about_many():
    """There a bare digest is nobody's, and an image that is not named has none."""
    assert parse(A, "sha256", NAME, only_file=False) is None
    assert parse(f"{A}  other.img", "sha256", NAME, only_file=False) is None
    assert parse(f"{B}  other.img\n{A}  {NAME}", "sha256", NAME, only_file=False) == Checksum("sha256", A)


def test_the_file_beside_the_text_goes_before_namesakes_elsewhere():
    """SHA256SUMS of a tree lists the same name in several folders."""
    text = f"{B}  old/{NAME}\n{A}  ./{NAME}\n"
    assert parse(text, "sha256", NAME, only_file=False) == Checksum("sha256", A)


@given(st.text(alphabet=st.sampled_from(f"{A}{NAME} *()=\n\r\t\\/.-S\0\u2028é"), max_size=300), st.booleans())
def test_no_text_breaks_the_parser(text, only_file):
    """A stranger's bytes end in a digest, in None or in an error with words."""
    try:
        found = parse(text, "sha256", NAME, only_file=only_file)
    except ImageError:
        return
    assert found is None or len(found.hex) == 64


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.sampled_from([NAME, "x.img", f"d/{NAME}"]), st.booleans())))
def test_lines_in_any_number_and_order(lines):
    """What is found is a digest that some line gives that very name."""
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
async def test_order_of_trust(files, expected):
    """Nearest first; a query (a signature, say) is not part of a sidecar's name."""
    source = FakeSource({URL: b"image", **{url: text.encode() for url, text in files.items()}})
    assert await discover(source, ImageUrl.parse(f"{URL}?token=x")) == expected
    assert source.open_now == 0


async def test_denied_is_absent_and_down_is_neither():
    """Stores say 'denied' for what is not there; a server that is down must not lower the guard."""
    source = FakeSource({URL: b"image"}, fail_at={"open": RemoteDeniedError("no")})
    assert await discover(source, ImageUrl.parse(URL)) is None
    source = FakeSource({URL: b"image"}, fail_at={"open": RemoteUnavailableError("down")})
    with pytest.raises(RemoteUnavailableError):
        await discover(source, ImageUrl.parse(URL))


async def test_a_sidecar_of_megabytes_is_not_read_to_its_end():
    source = FakeSource({URL: b"image", SIDE_256: b"x" * (3 * MAX_TEXT)})
    with pytest.raises(ImageError, match="larger than a checksum file"):
        await discover(source, ImageUrl.parse(URL))
    assert source.bytes_given <= MAX_TEXT + source.chunk_size
    assert source.open_now == 0
