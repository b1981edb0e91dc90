"""Tests of abbreviated job ids and checksums."""

from __future__ import annotations

import pytest

JOB_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
OTHER_ID = "f47ac10b-58cd-4000-8000-000000000000"
CHECKSUM = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


@pytest.fixture
def jobs(server, examples):
    """Answer with two jobs of the same beginning, whatever is asked for."""
    found = [{**examples["JobCompleted"], "job_id": job_id} for job_id in (JOB_ID, OTHER_ID)]
    server.on("GET", "/api/v1/jobs", {"jobs": found, "count": 2, "offset": 0, "limit": 10})
    server.on("GET", f"/api/v1/jobs/{JOB_ID}", "JobCompleted")
    server.on("POST", f"/api/v1/jobs/{JOB_ID}/cancel", "CancelDone")
    server.on("POST", f"/api/v1/jobs/{JOB_ID}/retry", "JobAccepted", status=202)


@pytest.fixture
def images(server, examples):
    """Answer with one cached image, whatever is asked for."""
    (image, *_) = examples["CachedImagePage"]["images"]
    server.on(
        "GET", "/api/v1/cache/images",
        {"images": [{**image, "checksum": CHECKSUM}], "count": 1, "offset": 0, "limit": 10},
    )  # fmt: skip
    for method, tail, example in (
        ("DELETE", "", "CachedImageRemoved"), ("PUT", "/pin", "CachedImagePinned"),
        ("DELETE", "/pin", "CachedImageUnpinned"), ("POST", "/verify", "CachedImageIntact"),
    ):  # fmt: skip
        server.on(method, f"/api/v1/cache/images/{CHECKSUM}{tail}", example)


@pytest.mark.parametrize("command", ["show", "watch", "cancel", "retry"])
@pytest.mark.parametrize("given", ["f47ac10b-58cc", "F47AC10B58CC4"])
def test_job_prefix(lvp, server, jobs, command, given):
    assert lvp("job", command, given).status == 0
    assert server.requests[0].path.startswith("/api/v1/jobs?id_prefix=f47ac10b-58cc")
    assert f"/api/v1/jobs/{JOB_ID}" in server.requests[1].path


@pytest.mark.parametrize("given", [JOB_ID, JOB_ID.replace("-", "").upper()])
def test_whole_job_id_is_not_looked_up(lvp, server, jobs, given):
    assert lvp("job", "show", given).status == 0
    assert [request.path for request in server.requests] == [f"/api/v1/jobs/{JOB_ID}"]


def test_ambiguous_job_prefix(lvp, server, jobs):
    ended = lvp("job", "cancel", "f47ac10b")
    assert (ended.status, ended.out, len(server.requests)) == (4, "", 1)
    first, header, *rows = ended.err.splitlines()
    assert first == "Error: f47ac10b is the beginning of several; give more of it:"
    assert header.split() == ["JOB", "STATUS", "VOLUME", "CREATED"]
    assert [row.split()[:2] for row in rows] == [[JOB_ID, "completed"], [OTHER_ID, "completed"]]


def test_unknown_job_prefix(lvp, jobs):
    assert lvp("job", "show", "00000000") == (4, "", "Error: no job begins with 00000000\n")


@pytest.mark.parametrize("verb", ["remove", "pin", "unpin", "verify"])
@pytest.mark.parametrize("given", [CHECKSUM[:8], f"SHA256:{CHECKSUM[:9].upper()}"])
def test_checksum_prefix(lvp, server, images, verb, given):
    ended = lvp("cache", verb, given)
    assert ended.status == 0
    assert CHECKSUM in ended.out
    assert server.requests[0].path.startswith(f"/api/v1/cache/images?checksum_prefix={CHECKSUM[:8]}")


def test_unknown_checksum_prefix(lvp, images):
    """An image that the server lists although it was not asked for is left alone."""
    assert lvp("cache", "remove", "00000000") == (4, "", "Error: no cached image begins with 00000000\n")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["job", "show", "f47ac10"], "ID needs at least the first 8 characters; found 'f47ac10'"),
        (["job", "show", "web-01-volume"], "ID is a job's id or its beginning; found 'web-01-volume'"),
        (["cache", "pin", "sha256:9f86"], "CHECKSUM needs at least the first 8 digits; found 'sha256:9f86'"),
        (["cache", "pin", "debian-12"], "CHECKSUM is a sha256 or sha512, or the beginning of a sha256;"),
    ],
)
def test_unusable_prefix_sends_no_request(lvp, server, args, words):
    ended = lvp(*args)
    assert (ended.status, server.requests) == (2, [])
    assert words in ended.err
