"""The decisions of a job, as tables."""

import pytest

from provisioner.contracts import GIB, Checksum, ImageUrl, Placement, VolumeUser
from provisioner.contracts.errors import ChecksumMissingError, ImageFormatError, ImageTooLargeError, VolumeInUseError
from provisioner.contracts.testing import FakeConverter
from provisioner.download.checksum_lookup import Found
from provisioner.download.inspection import ImageInfo
from provisioner.pipeline.job_run import JobRun, JobSpec
from provisioner.pipeline.plan import (
    check_checksum,
    check_fits,
    check_image,
    check_users,
    data_bytes,
    may_overlap,
    unverified_warning,
)

URL = ImageUrl.parse("https://x/y.raw?signature=secret")
SPEC = JobSpec(image_url=URL, image_format="raw", volume_name="web01", size_bytes=10 * GIB, target="main")


@pytest.mark.parametrize(
    ("declared", "info", "file_size", "result"),
    [
        ("qcow2", ImageInfo("qcow2", GIB), 999, GIB),
        ("qcow2", ImageInfo("qcow2", GIB), None, GIB),
        ("qcow2", ImageInfo("qcow2", 10 * GIB), 999, 10 * GIB),
        ("raw", ImageInfo("raw", None), 1000, 1000),
        ("raw", ImageInfo("raw", None), None, None),
        ("qcow2", ImageInfo("qcow2", 10 * GIB + 1), 999, ImageTooLargeError),
        ("qcow2", ImageInfo("qcow2", 1 << 63), 999, ImageTooLargeError),
        ("raw", ImageInfo("raw", None), 10 * GIB + 1, ImageTooLargeError),
        ("qcow2", ImageInfo("qcow2", 0), 999, ImageFormatError),
        ("raw", ImageInfo("raw", None), 0, ImageFormatError),
        ("raw", ImageInfo("qcow2", GIB), 999, ImageFormatError),
        ("qcow2", ImageInfo("raw", None), 999, ImageFormatError),
        ("qcow2", ImageInfo("vmdk", GIB), 999, ImageFormatError),
    ],
)
def test_check_image(declared, info, file_size, result):
    if isinstance(result, type):
        with pytest.raises(result):
            check_image(info, declared, file_size, 10 * GIB)
    else:
        assert check_image(info, declared, file_size, 10 * GIB) == result


def test_check_fits_names_the_size_to_ask_for():
    check_fits(2 * GIB, 2 * GIB)
    with pytest.raises(ImageTooLargeError, match="ask for 3 GiB or more"):
        check_fits(2 * GIB + 1, 2 * GIB)
    with pytest.raises(ImageTooLargeError, match="ask for 3 GiB or more"):
        check_fits(3 * GIB, 2 * GIB)


@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("hit", [False, True])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("size_known", [False, True])
def test_may_overlap(placement, hit, streams, size_known):
    """Never in place, and only if it saves time."""
    may = may_overlap(FakeConverter(streams=streams), placement, hit=hit, size_known=size_known)
    assert may == (streams and size_known and not hit and placement is not Placement.IN_PLACE)


def test_check_checksum_if_required():
    """The error says what was tried, and the three ways out."""
    check_checksum(Found(), URL, required=False)
    check_checksum(Found(Checksum("sha256", "0" * 64)), URL, required=True)
    nothing = Found(missing=["y.raw.sha256", "SHA256SUMS"], useless={"it has only md5": ["MD5SUMS"]})
    with pytest.raises(ChecksumMissingError) as caught:
        check_checksum(nothing, URL, required=True)
    assert caught.value.message == (
        "no checksum is known for https://x/y.raw (its url is signed for itself alone: files beside it were asked for "
        "without the signature) (MD5SUMS: it has only md5; not found: y.raw.sha256, SHA256SUMS); "
        "give its sha256 or sha512 with the request, name the publisher's checksum file in checksum_files of the "
        "source, or set require_checksum = false in [cache]"
    )


def test_unverified_warning():
    assert unverified_warning(Found(missing=["y.raw.sha256"]), URL) is None
    assert unverified_warning(Found(Checksum("sha256", "0" * 64)), URL) is None
    found = Found(missing=["a"], useless={"it is empty": ["y.raw.sha256", "SHA256SUMS"], "stalled": ["CHECKSUM"]})
    assert unverified_warning(found, URL) == (
        "https://x/y.raw was not verified, because no checksum file could be used: "
        "y.raw.sha256, SHA256SUMS: it is empty; CHECKSUM: stalled"
    )


def test_check_users_names_them():
    check_users("web01", [])
    with pytest.raises(VolumeInUseError, match="web01 is in use by domain db1, process qemu"):
        check_users("web01", [VolumeUser("domain", "db1"), VolumeUser("process", "qemu")])


@pytest.mark.parametrize(
    ("image_format", "file_size", "expected"),
    [("qcow2", 3 * GIB, 3 * GIB), ("qcow2", 9 * GIB, 8 * GIB), ("qcow2", None, None), ("raw", 8 * GIB, None)],
)
def test_data_bytes_by_format(image_format, file_size, expected):
    assert data_bytes(image_format, file_size, 8 * GIB) == expected


def test_stage_request():
    asked = JobRun("job-1", 5.0, SPEC).stage_request()
    assert (asked.name, asked.size_bytes, asked.job_id, asked.provenance.image_digest) == (
        "web01", 10 * GIB, "job-1", None,
    )  # fmt: skip
    base = JobRun("job-1", 5.0, SPEC).stage_request("sha256:x", name="raw", size_bytes=7)
    assert (base.name, base.size_bytes, base.provenance.image_digest) == ("raw", 7, "sha256:x")
