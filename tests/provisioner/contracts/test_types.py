"""Parsing of checksums, and the frozen value types."""

from dataclasses import FrozenInstanceError

import pytest

from provisioner.contracts.errors import InvalidRequestError
from provisioner.contracts.testing import a_provenance, a_request
from provisioner.contracts.types import Checksum, VolumeUser

SHA256, SHA512 = "ab" * 32, "cd" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"sha256:{SHA256}", Checksum("sha256", SHA256)),
        (f"sha512:{SHA512}", Checksum("sha512", SHA512)),
        (f"SHA256:{SHA256.upper()}", Checksum("sha256", SHA256)),
        (f"  sha256: {SHA256}\n", Checksum("sha256", SHA256)),
        (SHA256, Checksum("sha256", SHA256)),
        (f"  {SHA512.upper()}\n", Checksum("sha512", SHA512)),
    ],
)
def test_checksum_parse(text, expected):
    assert Checksum.parse(text) == expected
    assert Checksum.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "sha256", "sha256:", f":{SHA256}x", f"sha256:{SHA512}", f"sha512:{SHA256}", f"sha384:{'0' * 96}",
     f"sha256:{'g' * 64}", f"sha256:{SHA256}0", f"sha256:{SHA256[:-1]}", "sha256:" + "\u0661" * 64],
)  # fmt: skip
def test_checksum_invalid(text):
    with pytest.raises(InvalidRequestError, match=r"64 \(sha256\) or 128 \(sha512\) hexadecimal digits"):
        Checksum.parse(text)


def test_stage_request_job_id():
    assert a_request(job_id="job-7").job_id == "job-7"


def test_types_are_frozen():
    with pytest.raises(FrozenInstanceError):
        a_provenance().job_id = "another"


def test_volume_user_text():
    assert str(VolumeUser("domain", "web01")) == "domain web01"
