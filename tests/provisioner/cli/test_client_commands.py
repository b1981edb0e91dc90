"""Tests of the client commands with the examples of api.yaml: requests, output and exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

# As in api.yaml's examples.
JOB_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
JOB_PATH = f"/api/v1/jobs/{JOB_ID}"
CHECKSUM = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
SUBMIT = ("job", "submit", "https://images.example.com/ubuntu-24.04.qcow2", "web-01", "20")


def test_submit_prints_only_the_id(lvp, server, examples):
    server.on("POST", "/api/v1/jobs", "JobAccepted", status=202)
    assert lvp(*SUBMIT) == (0, JOB_ID + "\n", "")
    (request,) = server.requests
    assert request.body == {**examples["JobRequestMinimal"], "volume_size_gb": 20}
    assert request.headers["x-api-token"] == "s3cret"


def test_submit_without_size(lvp, server, examples):
    server.on("POST", "/api/v1/jobs", "JobAccepted", status=202)
    assert lvp(*SUBMIT[:-1]) == (0, JOB_ID + "\n", "")
    assert server.requests[0].body == examples["JobRequestMinimal"]


def test_submit_sends_every_option(lvp, server, examples):
    server.on("POST", "/api/v1/jobs", "JobAccepted", status=202)
    full = examples["JobRequestFull"]
    options = {
        "--type": full["image_type"],
        "--target": full["target"],
        "--checksum": full["checksum"],
        "--correlation-id": full["correlation_id"],
        "--priority": full["priority"],
        "--idempotency-key": "k-1",
    }
    lvp(*SUBMIT, *(part for option in options.items() for part in option))
    assert server.requests[0].body == full
    assert server.requests[0].headers["idempotency-key"] == "k-1"


def test_submit_repeats_lost_request(lvp, server, monkeypatch):
    monkeypatch.setattr("provisioner.cli.client.REPEAT_PAUSES", (0, 0))
    server.on("POST", "/api/v1/jobs", None, (202, "JobAccepted"))
    assert lvp(*SUBMIT).status == 0
    first, second = (request.headers["idempotency-key"] for request in server.requests)
    assert first == second


@pytest.mark.parametrize(
    ("end", "status"), [("JobCompleted", 0), ("JobFailed", 1), ("JobCancelled", 3)], ids=["done", "failed", "cancelled"]
)
def test_submit_wait(lvp, server, end, status, examples):
    server.on("POST", "/api/v1/jobs", "JobAccepted", status=202)
    server.on("GET", JOB_PATH, "JobPending", "JobRunning", end)
    ended = lvp(*SUBMIT, "--wait")
    assert ended.status == status
    assert ended.out.splitlines()[:3] == [
        f"job {JOB_ID}",
        "queued",
        "downloading 50 %, 128 KiB of 256 KiB, 29 s left",
    ]
    assert f"{examples['JobFailed']['error']} [checksum-mismatch]" in ended.err or status != 1
    assert len(ended.err.splitlines()) == (status != 0)


def test_submit_wait_json_prints_only_jobs(lvp, server, examples):
    server.on("POST", "/api/v1/jobs", "JobAccepted", status=202)
    server.on("GET", JOB_PATH, "JobRunning", "JobCompleted")
    ended = lvp(*SUBMIT, "--wait", "--json")
    assert [json.loads(line) for line in ended.out.splitlines()] == [examples["JobRunning"], examples["JobCompleted"]]


def test_watch_completed_job(lvp, server):
    server.on("GET", JOB_PATH, "JobCompleted")
    assert lvp("job", "watch", JOB_ID).out == (
        "completed: volume web-01 on files, 20 GiB, is /var/lib/libvirt-volume-provisioner/volumes/web-01 "
        "(copy, image downloaded)\n"
    )


@pytest.mark.parametrize(("command", "where"), [("watch", "err"), ("show", "out")])
def test_warnings_of_a_job(lvp, server, examples, command, where):
    server.on("GET", JOB_PATH, {**examples["JobCompleted"], "warnings": ["https://x/y was not verified"]})
    ended = lvp("job", command, JOB_ID)
    assert ended.status == 0
    before = {"err": "Warning: ", "out": "warnings:\n  "}[where]
    assert f"{before}https://x/y was not verified" in ended._asdict()[where]


def test_watch_signed_job(lvp, server, examples):
    signer = {"kind": "openpgp", "key": "9D2E" * 10, "name": "Publisher <p@example.org>"}
    server.on("GET", JOB_PATH, examples["JobCompleted"] | {"signed_by": signer})
    assert lvp("job", "watch", JOB_ID).out.endswith(f"(copy, image downloaded); signed by openpgp key {'9D2E' * 10}\n")


def test_watch_json_prints_each_change_once(lvp, server, examples):
    server.on("GET", JOB_PATH, "JobRunning", "JobRunning", "JobCompleted")
    ended = lvp("job", "watch", JOB_ID, "--json")
    assert [json.loads(line) for line in ended.out.splitlines()] == [examples["JobRunning"], examples["JobCompleted"]]


@pytest.mark.parametrize(
    ("args", "method", "path", "example", "status"),
    [
        ([*SUBMIT], "POST", "/api/v1/jobs", "JobAccepted", 202),
        (["job", "list"], "GET", "/api/v1/jobs", "JobListPage", 200),
        (["job", "show", JOB_ID], "GET", JOB_PATH, "JobFailed", 200),
        (["job", "watch", JOB_ID], "GET", JOB_PATH, "JobCompleted", 200),
        (["job", "cancel", JOB_ID], "POST", JOB_PATH + "/cancel", "CancelDone", 200),
        (["cache", "list"], "GET", "/api/v1/cache/images", "CachedImagePage", 200),
        (["cache", "fetch", "https://x/y"], "POST", "/api/v1/cache/fetch", "JobAccepted", 202),
        (["cache", "remove", CHECKSUM], "DELETE", f"/api/v1/cache/images/{CHECKSUM}", "CachedImageRemoved", 200),
        (["cache", "prune"], "POST", "/api/v1/cache/prune", "CachePruned", 200),
        (["volume", "list"], "GET", "/api/v1/volumes", "VolumePage", 200),
        (
            ["volume", "remove", "fast", "web-01", "--yes"],
            "DELETE",
            "/api/v1/volumes/fast/web-01",
            "VolumeRemoved",
            200,
        ),
        (["health"], "GET", "/health", "HealthDegraded", 200),
        (["health", "--ready"], "GET", "/readyz", "Ready", 200),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_json_option(lvp, server, args, method, path, example, status, examples):
    """With --json, commands print the API's object; without it, they print text."""
    server.on(method, path, example, status=status)
    assert lvp(*args, "--json") == (0, json.dumps(examples[example]) + "\n", "") or args[1] == "list"
    plain = lvp(*args)
    assert plain.status == 0
    assert plain.out
    assert not plain.out.startswith("{")


def test_list_hints_at_next_page(lvp, server):
    server.on("GET", "/api/v1/jobs", "JobListPage")
    ended = lvp("job", "list", "--status", "running", "--volume", "web-01", "--limit", "1", "--offset", "0")
    assert server.requests[0].path == "/api/v1/jobs?status=running&volume_name=web-01&offset=0&limit=1"
    assert ended.out.splitlines()[1].split() == [
        *(JOB_ID, "pending", "-", "web-02", "2024-01-14T10:30:00Z"),
        "https://images.example.com/ubuntu-24.04.qcow2",
    ]
    assert ended.err == "1 of 2; more with --offset 1\n"


@pytest.mark.parametrize(
    ("example", "code", "status"),
    [("InvalidField", 400, 4), ("VolumeBusy", 409, 4), ("InternalError", 500, 5)],
)
def test_api_error_message(lvp, server, example, code, status, examples):
    server.on("POST", "/api/v1/jobs", example, status=code)
    assert lvp(*SUBMIT) == (status, "", f"Error: {examples[example]['message']} [{examples[example]['reason']}]\n")


def test_cancel_ended_job(lvp, server):
    server.on("POST", JOB_PATH + "/cancel", "CancelTooLate", status=400)
    assert lvp("job", "cancel", JOB_ID) == (4, "", "Error: cannot cancel job in 'completed' status [job-ended]\n")


def test_health_prints_warnings(lvp, server):
    server.on("GET", "/health", "HealthWarning")
    assert lvp("health").out.splitlines()[1:] == ["warning: the server's certificate expires on 2024-01-20, in 5 days"]


def test_health_of_other_server(lvp, server):
    server.on("GET", "/health", b"<html>It works!</html>")
    ended = lvp("health")
    assert ended.status == 4
    assert ended.err == f"Error: {server.url} does not answer like a libvirt-volume-provisioner (HTTP status 200)\n"


def test_health_of_unreachable_server(lvp, server):
    server.stop()
    assert lvp("health").status == 5


def test_remove_quotes_name_in_path(lvp, server):
    lvp("volume", "remove", "fast", "../jobs?x#y", "--yes")
    assert server.requests[0].path == "/api/v1/volumes/fast/..%2Fjobs%3Fx%23y"


def test_output_has_no_control_characters(lvp, server, examples):
    server.on("GET", JOB_PATH, {**examples["JobFailed"], "error": "bad\x1b[2Jthing\nsecond"})
    for command in ("show", "watch"):
        ended = lvp("job", command, JOB_ID)
        assert "\x1b" not in ended.out + ended.err
        assert "bad?[2Jthing?second" in ended.out + ended.err


@pytest.mark.parametrize(
    "args",
    [["job", "show", "not-an-id"], ["job", "submit", "u", "n", "0"], ["job", "list", "--status", "odd"], ["jbo"]],
)
def test_wrong_usage_sends_no_request(lvp, server, args):
    ended = lvp(*args)
    assert (ended.status, server.requests) == (2, [])
    assert ended.err.startswith("Usage:")


def test_volume_remove_without_terminal_needs_yes(lvp, server):
    ended = lvp("volume", "remove", "fast", "web-01")
    assert (ended.status, server.requests) == (2, [])
    assert "needs --yes" in ended.err


RESIZE_PATH = "/api/v1/volumes/fast/web-01/resize"


def test_volume_resize(lvp, server, examples):
    server.on("POST", RESIZE_PATH, examples["VolumeResized"])
    assert lvp("volume", "resize", "fast", "web-01", "40").out == "resized volume web-01 on fast to 40 GiB\n"
    assert lvp("volume", "resize", "fast", "web-01", "40", "--online", "--json").status == 0
    assert [request.body for request in server.requests] == [
        {"volume_size_gb": 40},
        {"volume_size_gb": 40, "online": True},
    ]
    server.on("POST", RESIZE_PATH, examples["VolumeUnchanged"])
    assert lvp("volume", "resize", "fast", "web-01", "40").out == "volume web-01 on fast has 40 GiB already\n"


def test_volume_resize_refused(lvp, server, examples):
    server.on("POST", RESIZE_PATH, examples["VolumeLarger"], status=409)
    ended = lvp("volume", "resize", "fast", "web-01", "20")
    assert (ended.status, ended.err) == (4, f"Error: {examples['VolumeLarger']['message']} [resize-refused]\n")
    assert lvp("volume", "resize", "fast", "web-01", "20G").status == 2


def test_watch_says_what_was_replaced(lvp, server, examples):
    replaced = examples["JobReplaced"]["replaced"]
    server.on("GET", JOB_PATH, "JobReplaced")
    said = f"it replaced a volume that this service did not make, kept as {replaced['kept_as']} until "
    assert said in lvp("job", "watch", JOB_ID).out
    server.on("GET", JOB_PATH, {**examples["JobReplaced"], "replaced": {"name": "web-01", "ours": True}})
    assert "replaced" not in lvp("job", "watch", JOB_ID).out


def test_volume_list_replaced(lvp, server, examples):
    server.on("GET", "/api/v1/volumes/replaced", "ReplacedPage")
    ended = lvp("volume", "list", "--replaced")
    assert ended.status == 0
    header, row = ended.out.splitlines()
    assert header.split("  ")[0] == "TARGET"
    for value in ("files", "web-01", "others", examples["ReplacedPage"]["replaced"][0]["kept_as"]):
        assert value in row


def test_volume_remove_replaced(lvp, server):
    server.on("DELETE", "/api/v1/volumes/files/web-01/replaced", "ReplacedVolumeRemoved")
    ended = lvp("volume", "remove", "files", "web-01", "--replaced")
    assert (ended.status, server.requests) == (2, [])
    ended = lvp("volume", "remove", "files", "web-01", "--replaced", "--yes")
    assert (ended.status, ended.out) == (0, "removed the replaced volume web-01 from files\n")
    assert lvp("volume", "remove", "files", "web-01", "--kept-as", "@kept.1.web-01", "-y").status == 0
    assert server.requests[1].path.endswith("/replaced?kept_as=%40kept.1.web-01")


def test_volume_restore_and_adopt(lvp, server, examples):
    server.on("POST", "/api/v1/volumes/files/web-01/restore", "VolumeRestored")
    server.on("POST", "/api/v1/volumes/files/web-01/adopt", "VolumeAdopted")
    ended = lvp("volume", "restore", "files", "web-01")
    kept_as = examples["VolumeRestored"]["replaced"]["kept_as"]
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[0] == "restored volume web-01 on files"
    assert f"is kept as {kept_as} until " in ended.out
    lvp("volume", "restore", "files", "web-01", "--kept-as", "@kept.1.web-01")
    assert server.requests[1].body == {"kept_as": "@kept.1.web-01"}
    ended = lvp("volume", "adopt", "files", "web-01")
    assert (ended.status, ended.out) == (0, "adopted volume web-01 on files\n")


@pytest.mark.parametrize("image", ["https:/images.example/a.qcow2", "images.example/a.qcow2", "./a.qcow2"])
def test_malformed_url_is_not_taken_for_a_name(lvp, server, image):
    server.on("POST", "/api/v1/jobs", "JobAccepted", status=202)
    lvp("job", "submit", image, "web-01", "20")
    assert server.requests[0].body["image_url"] == image


@pytest.mark.parametrize("size", ["20G", "0", "1.5", "-3"])
def test_submit_with_invalid_size(lvp, server, size):
    ended = lvp("job", "submit", "https://x/y", "web-01", "--", size)
    assert (ended.status, server.requests) == (2, [])
    assert "SIZE_GB is a whole number of GiB, such as 20" in ended.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["jobs", "list"], "did you mean job?"),
        (["volumes"], "did you mean volume?"),
        (["volume", "rm", "a", "b"], "did you mean remove?"),
        (["job", "ls"], "did you mean list?"),
        (["job", "rm", "x"], "did you mean cancel?"),
        (["token", "rm", "x"], "did you mean revoke?"),
        (["pki", "ls"], "did you mean show?"),
        (["target", "ls"], "did you mean list?"),
        (["cache", "delete", "x"], "did you mean remove?"),
        (["job", "submti"], "did you mean submit?"),
        (["--url", "http://x", "job", "list"], "--url comes after the command: lvp job list --url"),
        (["job", "--token=x", "list"], "--token comes after the command: lvp job list --token"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_near_miss_is_answered_with_a_suggestion(lvp, server, args, words):
    ended = lvp(*args)
    assert (ended.status, server.requests) == (2, [])
    assert words in ended.err


def process(server, *args, stdout, **environment):
    env = {**os.environ, "LVP_URL": server.url, "LVP_TOKEN": "s3cret", "TERM": "xterm", "COLUMNS": "100", **environment}
    command = [sys.executable, "-m", "provisioner.cli", *args]
    return subprocess.Popen(command, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_watch_interrupted(home, server):
    server.on("GET", JOB_PATH, "JobRunning")
    with process(server, "job", "watch", JOB_ID, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline().startswith("downloading 50 %")
        child.send_signal(signal.SIGINT)
        _, err = child.communicate()
    assert child.returncode == 130
    assert "the job continues" in err
    assert f"lvp job cancel {JOB_ID}" in err


def test_watch_on_terminal(home, server):
    server.on("GET", JOB_PATH, *["JobRunning"] * 4, "JobCompleted")
    ours, theirs = os.openpty()
    with process(server, "job", "watch", JOB_ID, stdout=theirs) as child, os.fdopen(ours, "rb", buffering=0) as screen:
        os.close(theirs)
        seen = b""
        while chunk := read_terminal(screen):
            seen += chunk
        assert child.wait() == 0
        assert child.stderr.read() == ""
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert re.search(r"downloading +[━╸╺]+ +50 % +128 KiB of 256 KiB +29 s left", shown)
    assert "  0 %" not in shown  # the bar never shows a value that the server did not send
    assert shown.splitlines()[-1].startswith("completed: volume web-01")


@pytest.mark.parametrize(
    ("environment", "escapes"), [({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, True)], ids=["dumb", "no-color"]
)
def test_watch_on_plain_terminal(home, server, environment, escapes):
    """A dumb terminal gets lines without control sequences; NO_COLOR keeps the bar but has no colours."""
    server.on("GET", JOB_PATH, *["JobRunning"] * 4, "JobCompleted")
    ours, theirs = os.openpty()
    with (
        process(server, "job", "watch", JOB_ID, stdout=theirs, **environment) as child,
        os.fdopen(ours, "rb", buffering=0) as screen,
    ):
        os.close(theirs)
        seen = b"".join(iter(lambda: read_terminal(screen), b""))
        assert (child.wait(), child.stderr.read()) == (0, "")
    assert b"downloading" in seen
    assert (b"\x1b" in seen) == escapes
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9](;|m)", seen)


def read_terminal(screen):
    try:
        return screen.read(4096)
    except OSError:  # Linux returns EIO when the other side is closed
        return b""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_list_to_reader_that_stops_early(home, server, examples, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    server.on("GET", "/api/v1/jobs", {"jobs": [examples["JobRunning"]] * 5000, "count": 5000, "offset": 0})
    with process(server, "job", "list", stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        child.stdout.close()
        assert (child.wait(), child.stderr.read()) == (0, "")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_volume_list_with_unavailable_target(lvp, server, examples, flags):
    """Other volumes are shown, the missing target is named, and the exit status tells a script."""
    page = {**examples["VolumePage"], "unavailable": {"slow": "target 'slow': no answer for 12 s"}}
    server.on("GET", "/api/v1/volumes", page)
    ended = lvp("volume", "list", *flags)
    assert ended.status == 5
    assert "web-01" in ended.out
    assert "slow: target 'slow': no answer for 12 s" in ended.err
    assert "the volumes of some targets are missing: slow" in ended.err
