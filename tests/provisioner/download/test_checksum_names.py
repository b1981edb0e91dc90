"""Where checksum files are looked for."""

import pytest

from provisioner.contracts import ImageUrl
from provisioner.download.checksum_names import PATTERNS, checksum_files, is_signed_alone, weak_checksum_files

URL = ImageUrl.parse("https://images.example.com/pub/12/disk.qcow2?token=x")


def test_files_in_order():
    """Sidecars come before lists, and a query, such as a signature, is not part of any name."""
    files = checksum_files(URL)
    assert [file.url.text for file in files][:2] == [f"{URL}.sha256", f"{URL}.sha512"]
    assert len(files) == len(PATTERNS)
    sidecars = [file.is_sidecar for file in files]
    assert sidecars == sorted(sidecars, reverse=True)
    by_name = {file.name: file.algorithm for file in files}
    assert by_name["CHECKSUM"] is by_name["disk.qcow2.DIGESTS"] is None
    assert (by_name["CHECKSUM.SHA256"], by_name["SHA512SUMS"]) == ("sha256", "sha512")


def test_configured_patterns_come_first():
    patterns = ["{parent}/{name}.digest", "{dir}/ALL.sha512", "{dir}/SHA256SUMS", "{dir}/../x"]
    files = checksum_files(URL, patterns)
    assert [file.url.path for file in files[:3]] == [
        "/pub/disk.qcow2.digest",
        "/pub/12/ALL.sha512",
        "/pub/12/SHA256SUMS",
    ]
    assert [file.is_sidecar for file in files[:3]] == [True, False, False]
    assert len(files) == len(PATTERNS) + 2  # SHA256SUMS is asked for once, ".." never


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2", "Fedora-Cloud-43-1.6-x86_64-CHECKSUM"),
        ("Fedora-Cloud-Base-Generic.x86_64-40-1.14.qcow2", "Fedora-Cloud-40-1.14-x86_64-CHECKSUM"),
        ("Fedora-Server-KVM-40-1.14.aarch64.qcow2", "Fedora-Server-40-1.14-aarch64-CHECKSUM"),
        ("Fedora-Cloud-Base-39-1.5.x86_64.raw.xz", "Fedora-Cloud-39-1.5-x86_64-CHECKSUM"),
    ],
)
def test_fedora_names(image, name):
    first = checksum_files(ImageUrl.parse(f"https://h/images/{image}"))[0]
    assert (first.name, first.is_sidecar) == (name, False)


def test_url_without_a_name():
    files = checksum_files(ImageUrl.parse("https://h/images/"))
    assert files
    assert not any(file.is_sidecar for file in files)


def test_weak_files():
    assert "MD5SUMS" in {file.name for file in weak_checksum_files(URL)}


@pytest.mark.parametrize(
    ("query", "shared", "alone"),
    [
        ("", False, False),
        ("versionId=3", False, False),
        ("token=x", False, False),
        ("X-Amz-Algorithm=A&X-Amz-Signature=ab", False, True),
        ("X-Goog-Signature=ab", False, True),
        ("Policy=x&Signature=ab&Key-Pair-Id=K", False, True),
        ("sv=2022-11-02&sr=b&sp=r&sig=a%2Bb", False, True),  # a blob
        ("sv=2022-11-02&sr=c&sp=r&sig=a%2Bb", True, False),  # a container
        ("sv=2022-11-02&sr=d&sdd=1&sp=r&sig=a%2Bb", True, False),  # a directory
        ("sv=2022-11-02&ss=b&srt=sco&sp=rl&sig=a%2Bb", True, False),  # an account
        ("sv=2022-11-02&ss=b&srt=sc&sp=rl&sig=a%2Bb", False, True),  # no objects
        ("sr=c&sig=a", False, True),
    ],
)
def test_query_of_a_signed_url(query, shared, alone):
    """Only a signature that covers the files beside the image is sent for them too, and it is never shown."""
    url = ImageUrl.parse(f"https://h/pub/disk.qcow2?{query}")
    assert {file.url.query for file in checksum_files(url)} == {query if shared else ""}
    assert is_signed_alone(query) == alone
    assert not any("sig" in f"{file.url}{file.name}" for file in checksum_files(url))
