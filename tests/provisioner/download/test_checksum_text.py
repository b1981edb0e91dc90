"""The forms of checksum files: what each says about the image."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.contracts import Checksum
from provisioner.contracts.errors import ImageError
from provisioner.download.checksum_text import ChecksumText, parse

A, B = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()
LONG = hashlib.sha512(b"a").hexdigest()
BLAKE2 = hashlib.blake2b(b"a").hexdigest()
MD5, SHA1 = "0" * 32, "1" * 40
NAME = "disk.qcow2"
SIGNATURE = f"-----BEGIN PGP SIGNATURE-----\n\n{B}\n=abcd\n-----END PGP SIGNATURE-----\n"


def signed(text):
    return f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{text}{SIGNATURE}"


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
        f"{A}  C:\\images\\{NAME}",
        f"{A}  -",
        f"SHA256 ({NAME}) = {A}",
        f"SHA256 (./{NAME}) = {A.upper()}",
        f"sha256 ({NAME}) = {A}",
        f"SHA256({NAME})= {A}",
        f"SHA2-256({NAME})= {A}",
        f"SHA2-256(stdin)= {A}",
        f"(stdin)= {A}",
        f"sha256:{A}",
        f"sha256:{A}  {NAME}",
        f"SHA-256: {A}",
        f"sha256 = {A}",
        f"sha256sum: {A}",
        f"{NAME}: {A}",
        f"{NAME} {A}",
        f"{NAME}: sha256:{A}",
        f"{NAME}  sha256  {A}",
        f"Algorithm       Hash        Path\n---------       ----        ----\nSHA256          {A}       C:\\{NAME}",
        f"\\{A}  {NAME}",
        f"{B}  other.img\n{A}  {NAME}\n",
        f"{A}  {NAME}\n{A}  {NAME}\n",
        f"# {NAME}: 12 bytes\nSHA512 ({NAME}) = {LONG}\nSHA256 ({NAME}) = {A}\n",
        signed(f"{A} *{NAME}\n"),
        signed(f"- {A} *{NAME}\n"),
        f"{LONG}  {NAME}\n{A}  {NAME}",
        f"# MD5 HASH\n{MD5}  {NAME}\n# SHA256 HASH\n{A}  {NAME}\n",
        f"SHA3-256 ({NAME}) = {B}\nBLAKE2s ({NAME}) = {B}\nSHA256 ({NAME}) = {A}\n",
        f"SHA512/256 ({NAME}) = {B}\nSHA256 ({NAME}) = {A}\n",
    ],
)
def test_parse_sidecar(text):
    """The image's digest is found in any form, and returned in lower case."""
    assert parse(text, "sha256", NAME, only_file=True) == Checksum("sha256", A)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "contains no sha256 digest"),
        ("no such file\n", "contains no sha256 digest"),
        (A[:-1], "contains no sha256 digest"),
        (f"{A}0", "contains no sha256 digest"),
        (f"x{A}", "contains no sha256 digest"),
        (LONG, "contains no sha256 digest"),
        (SIGNATURE, "contains no sha256 digest"),
        (f"the digest is {A} as you see", "contains no sha256 digest"),
        (f"{A}  other.qcow2\n{B}  another.qcow2", "names other.qcow2, not disk.qcow2"),
        (f"{A}  disk.qcow2.xz", r"names disk.qcow2.xz, not disk.qcow2"),
        (f"{A}\n{B}\n", "more than one sha256 digest"),
        (f"{A}  {NAME}\n{B}  {NAME}\n", "more than one sha256 digest"),
        (f"{A}  x/{NAME}\n{B}  y/{NAME}\n", "more than one sha256 digest"),
    ],
)
def test_parse_sidecar_useless(text, words):
    with pytest.raises(ImageError, match=words):
        parse(text, "sha256", NAME, only_file=True)


@pytest.mark.parametrize(
    "text",
    [
        f"{A}  disk-15.6.0-Build13.327.qcow2",
        f"{A}  build/box",
        f"SHA256 (disk-1.2.img) = {A}",
        f"{A}  x.img\n{A}  y.img",
    ],
)
def test_parse_sidecar_of_a_link(text):
    """The sidecar of a "latest" link names the build's own file. Its only digest counts: the image itself decides."""
    assert parse(text, "sha256", NAME, only_file=True) == Checksum("sha256", A)


def test_parse_sums_file():
    """A bare digest belongs to no file, and an unlisted image has no checksum, even if only one file is listed."""
    assert parse(A, "sha256", NAME, only_file=False) is None
    assert parse(f"{A}  other.img", "sha256", NAME, only_file=False) is None
    assert parse(f"{B}  other.img\n{A}  {NAME}", "sha256", NAME, only_file=False) == Checksum("sha256", A)


def test_parse_sections():
    """In a file for several algorithms, the section says which one it is: BLAKE2 is as long as SHA-512."""
    text = f"# BLAKE2B HASH\n{BLAKE2}  {NAME}\n# SHA512 HASH\n{LONG}  {NAME}\n"
    assert parse(text, None, NAME, only_file=True) == Checksum("sha512", LONG)
    assert parse(f"{LONG}  {NAME}\n{A}  {NAME}", None, NAME, only_file=True) == Checksum("sha256", A)


def test_parse_same_name_in_folders():
    """A list of a directory tree has the same name several times; the file beside the list wins."""
    text = f"{B}  old/{NAME}\n{A}  ./{NAME}\n"
    assert parse(text, "sha256", NAME, only_file=False) == Checksum("sha256", A)


def test_path_that_ends_the_url():
    text = ChecksumText(NAME, "sha256", only_file=False, url_path=f"/pub/12/latest/{NAME}")
    for line in (f"{B}  11/latest/{NAME}", f"{A}  12/latest/{NAME}"):
        text.feed(line)
    assert text.result() == Checksum("sha256", A)


@pytest.mark.parametrize(
    ("line", "weak"),
    [
        (f"{MD5}  {NAME}", ["md5"]),
        (f"SHA1 ({NAME}) = {SHA1}", ["sha1"]),
        (f"{MD5}  other", []),
        (f"{A}  {NAME}", []),
    ],
)
def test_weak_digests(line, weak):
    """MD5 and SHA-1 are recognized, but they are no checksum."""
    text = ChecksumText(NAME, None, only_file=False)
    text.feed(line)
    assert text.weak == weak
    assert (text.result() is None) == (A not in line)


@pytest.mark.parametrize("filler", [" ", ":", "\t", "=", "a ", "a:"])
def test_hostile_lines(filler):
    """Lines that would keep a backtracking expression busy for hours are parsed at once."""
    for line in (f"a{filler * 30_000}!{filler}{A}", f"sha256{filler * 30_000}!{A}", f"({filler * 30_000}) {A}"):
        assert parse(line, "sha256", NAME, only_file=False) is None


def test_name_that_looks_like_a_digest():
    name = f"{MD5}.qcow2"
    for line in (f"{A}  {name}", f"{A}  {MD5}", f"SHA256 ({name}) = {A}", f"{name}: {A}"):
        assert parse(line, "sha256", MD5 if line.endswith(MD5) else name, only_file=False) == Checksum("sha256", A)


@given(st.text(alphabet=st.sampled_from(f"{A}{NAME} *()=:#\n\r\t\\/.-S\0\u2028é"), max_size=300), st.booleans())
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
