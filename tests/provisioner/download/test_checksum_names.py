"""Where checksum files are looked for."""

import pytest

from provisioner.contracts import ImageUrl
from provisioner.download.checksum_names import PATTERNS, checksum_files, weak_checksum_files

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
