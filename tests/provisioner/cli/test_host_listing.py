"""Tests of the commands that show plans, targets, sources and the caller, and of a retry."""

from __future__ import annotations

import json

import pytest

from tests.provisioner.cli.test_client_commands import JOB_ID, JOB_PATH, SUBMIT


def test_retry_prints_the_new_id(lvp, server):
    server.on("POST", f"{JOB_PATH}/retry", "JobAccepted", status=202)
    assert lvp("job", "retry", JOB_ID) == (0, JOB_ID + "\n", "")
    assert server.requests[0].headers["idempotency-key"]


def test_retry_wait(lvp, server):
    server.on("POST", f"{JOB_PATH}/retry", "JobAccepted", status=202)
    server.on("GET", JOB_PATH, "JobCompleted")
    assert lvp("job", "retry", JOB_ID, "--wait").status == 0


def test_retry_active_job(lvp, server):
    server.on("POST", f"{JOB_PATH}/retry", "RetryTooEarly", status=409)
    ended = lvp("job", "retry", JOB_ID)
    assert (ended.status, ended.out) == (4, "")
    assert "still pending" in ended.err


def test_dry_run_shows_the_plan(lvp, server, examples):
    server.on("POST", "/api/v1/jobs", "PlanReplace", status=200)
    ended = lvp(*SUBMIT, "--dry-run")
    assert (ended.status, ended.err) == (0, "")
    lines = dict(line.split(":", 1) for line in ended.out.splitlines())
    assert lines["download"].strip() == "nothing: the image is there already"
    assert lines["volume"].strip() == "web-01, 20 GiB, by copy"
    assert "made by this service, swap" in lines["replaces"]
    assert lines["space"].strip() == "20 GiB of 80 GiB free"
    assert lines["checksum"].strip().endswith("(from the server)")
    assert server.requests[0].body == {**examples["JobRequestMinimal"], "volume_size_gb": 20}
    assert server.requests[0].path == "/api/v1/jobs?dry_run=true"


def test_dry_run_says_how_long_the_old_volume_is_kept(lvp, server):
    server.on("POST", "/api/v1/jobs", "PlanReplaceForeign")
    ended = lvp(*SUBMIT, "--dry-run")
    assert "NOT made by this service, swap, kept for 7 days" in ended.out
    server.on("POST", "/api/v1/jobs", "PlanReplace")
    assert "swap, NOT kept" in lvp(*SUBMIT, "--dry-run").out


def test_dry_run_on_older_server(lvp, server):
    """A server that ignores the query has accepted the job; the user must learn that."""
    server.on("POST", "/api/v1/jobs", "JobAccepted", status=202)
    ended = lvp(*SUBMIT, "--dry-run")
    assert ended.status == 4
    assert JOB_ID in ended.err


def test_dry_run_download(lvp, server):
    server.on("POST", "/api/v1/jobs", "PlanDownload", status=200)
    assert "download: 256 KiB" in lvp(*SUBMIT, "--dry-run").out


def test_dry_run_of_a_signed_image(lvp, server, examples):
    signer = {"kind": "minisign", "key": "0706050403020100", "name": "release 5"}
    server.on("POST", "/api/v1/jobs", examples["PlanDownload"] | {"signed_by": signer})
    assert "\nsigner:   minisign key 0706050403020100 (release 5)\n" in lvp(*SUBMIT, "--dry-run").out


def test_dry_run_without_size(lvp, server, examples):
    """The size is unknown until the image's header has arrived."""
    unknown = {"volume_size_bytes", "placement", "provisioned_by", "space_needed_bytes"}
    plan = {key: value for key, value in examples["PlanDownload"].items() if key not in unknown}
    server.on("POST", "/api/v1/jobs", plan, status=200)
    ended = lvp(*SUBMIT[:-1], "--dry-run")
    assert (ended.status, ended.err) == (0, "")
    assert "volume:   web-01, as large as the image needs\n" in ended.out


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_dry_run_refused(lvp, server, examples, flags):
    server.on("POST", "/api/v1/jobs", "PlanRefused", status=200)
    ended = lvp(*SUBMIT, "--dry-run", *flags)
    assert ended.status == 4
    assert all(refusal["message"] in ended.err for refusal in examples["PlanRefused"]["refusals"])
    assert not flags or json.loads(ended.out) == examples["PlanRefused"]


@pytest.mark.parametrize(
    ("command", "example", "parts"),
    [
        (["target", "list"], "TargetList", ["files *", "file", "100 GiB", "ok"]),
        (["target", "list"], "TargetUnhealthy", ["volume group vg0 does not exist"]),
        (["source", "list"], "SourceList", ["http", "ok"]),
        (["image", "list"], "NamedImageList", ["ubuntu-24.04", "qcow2", "Ubuntu 24.04 LTS"]),
        (["image", "show", "ubuntu-24.04"], "NamedImageResolved", ["image_url: https://", "checksum: sha256:"]),
        (["whoami"], "Whoami", ["name: admin (token)", "role: admin"]),
        (["whoami"], "WhoamiLimited", ["volumes: ci-*", "max_jobs: 4", "expires: 2024-01-14T10:30:00Z"]),
    ],
)
def test_listing(lvp, server, examples, command, example, parts):
    plural = {"target": "targets", "source": "sources", "image": "images"}
    path = "/".join(["/api/v1", plural.get(command[0], command[0]), *command[2:]])
    server.on("GET", path, example)
    ended = lvp(*command)
    assert (ended.status, ended.err) == (0, "")
    assert all(part in ended.out for part in parts)
    server.on("GET", path, example)
    assert json.loads(lvp(*command, "--json").out) == examples[example]
