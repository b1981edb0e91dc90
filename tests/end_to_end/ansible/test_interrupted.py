"""Jobs that end while a module waits, take too long, or whose server is away."""

from __future__ import annotations

import subprocess

import pytest

from contrib.clients.service import running
from tests.end_to_end.ansible.playing import Ansible
from tests.end_to_end.conftest import same
from tests.end_to_end.daemon import TIMEOUT, until

HELD = 256 * 1024


@pytest.fixture
def held(server):
    """Hold the image back in the middle; return the options of a volume with it."""
    server.held["plain.qcow2"] = HELD
    return {"image_url": server.of("plain.qcow2"), "name": "web-01", "size_gb": 1}


@pytest.fixture
def background(ansible):
    """Return a function that starts a play and returns its process."""
    started = []

    def start(options):
        command = ansible.command([{"lvp.provisioner.volume": options}])
        started.append(subprocess.Popen(command, env=ansible.environment, stdout=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def job_of(daemon):
    """Wait until the module has submitted a job that downloads; return its id."""

    def look():
        jobs = daemon.call("GET", "/api/v1/jobs").json()["jobs"]
        return jobs and jobs[0]["status"] == "running" and jobs[0]["job_id"]

    return until(look)


def test_server_killed_while_waiting(ansible, daemon, server, images, held, background):
    """The module goes on waiting; the restarted server runs the job again."""
    port = daemon.url.rpartition(":")[2]
    process = background(held)
    job_id = job_of(daemon)
    daemon.kill()
    server.let_go.set()
    daemon.config["server"]["bind"] = [f"127.0.0.1:{port}"]
    daemon.start()
    assert process.wait(TIMEOUT) == 0
    (found,) = ansible.results()
    assert (found["changed"], found["job"]["job_id"], found["job"]["status"]) == (True, job_id, "completed")
    assert same(images["plain.qcow2"], daemon.volume("web-01"))


def test_server_stays_away(ansible, daemon, held, background):
    process = background({**held, "timeout": 20})
    job_id = job_of(daemon)
    daemon.kill()
    assert process.wait(TIMEOUT) == 2
    (found,) = ansible.results()
    assert found["error"] == "timeout"
    assert found["job"]["job_id"] == job_id
    assert "has not ended within 20 s, and the server does not answer" in found["msg"]


def test_job_cancelled_while_waiting(ansible, daemon, held, background):
    process = background(held)
    job_id = job_of(daemon)
    assert daemon.lvp("job", "cancel", job_id).status == 0
    assert process.wait(TIMEOUT) == 2
    (found,) = ansible.results()
    assert (found["error"], found["job"]["status"]) == ("job cancelled", "cancelled")
    assert not daemon.volume("web-01").exists()


def test_timeout_then_the_next_run_waits_for_the_same_job(ansible, daemon, server, images, held):
    late = ansible.module("volume", **held, timeout=1)
    assert late["error"] == "timeout"
    assert "it continues on the server" in late["msg"]
    busy, absent, started = ansible.each(
        "volume", [{**held, "size_gb": 2}, {"name": "web-01", "state": "absent"}, {**held, "wait": False}]
    )
    assert late["job"]["job_id"] in busy["msg"]
    assert (absent["error"], absent["status_code"]) == ("conflict", 409)
    assert (started["changed"], started["job"]["job_id"]) == (True, late["job"]["job_id"])
    server.let_go.set()
    second = ansible.module("volume", **held)
    assert second["changed"] in {True, False}  # False if the job has ended before the module looked
    assert daemon.call("GET", "/api/v1/jobs").json()["count"] == 1
    assert same(images["plain.qcow2"], daemon.volume("web-01"))


def test_job_on_another_target_is_not_waited_for(ansible, make_daemon, server):
    """The default target has a job for a volume of the same name."""
    daemon = make_daemon("two")
    other = {"plugin": "file", "directory": str(daemon.folder / "other"), "make_directory": True, "overcommit": True}
    daemon.config["targets"] = {"files": {**daemon.config["targets"]["files"], "default": True}, "other": other}
    daemon.start()
    ansible.options = {"url": daemon.url, "token": daemon.token}
    server.held["plain.qcow2"] = HELD
    daemon.submit(server.of("plain.qcow2"), "web-01")
    until(server.holding.is_set)
    there = {"name": "web-01", "target": "other", "size_gb": 1}
    absent, made = ansible.each(
        "volume", [{**there, "state": "absent"}, {**there, "image_url": server.of("zlib.qcow2")}]
    )
    assert absent["changed"] is False
    assert (made["changed"], made["volume"]["target"]) == (True, "other")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A daemon with TLS, and a client's certificate."""
    with running(tmp_path_factory.mktemp("tls")) as found:
        yield found


def test_credentials(installed, service):
    """A certificate, a token, and the environment; then wrong and missing ones."""
    pki = service.pki
    tls = {"url": service.daemon.url, "ca": str(pki / "ca.pem")}
    cert = {"cert": str(pki / "clients" / "generated.pem"), "key": str(pki / "clients" / "generated.key")}
    ansible = Ansible(installed, {})
    by_cert, by_token, wrong, anonymous, unknown_ca, mismatch = ansible.each(
        "volume_info",
        [
            {**tls, **cert},
            {**tls, "token": service.daemon.token},
            {**tls, "token": "lvp_wrong"},
            tls,
            {"url": service.daemon.url, **cert},
            {**tls, "cert": cert["cert"], "key": str(pki / "ca.key")},
        ],
    )
    assert by_cert["volumes"] == by_token["volumes"] == []
    for refused in (wrong, anonymous):
        assert (refused["state"], refused["error"], refused["status_code"]) == ("failed", "unauthorized", 401)
    assert "the API token is unknown" in wrong["msg"]
    assert "certificate verify failed" in unknown_ca["msg"].lower()
    assert mismatch["state"] == "failed"
    variables = {f"LVP_{name.upper()}": value for name, value in {**tls, **cert}.items()}
    found = ansible.play([{"lvp.provisioner.volume_info": {}}], **variables)
    assert found.only["volumes"] == []
    assert "lvp_wrong" not in str([wrong]) + found.output
