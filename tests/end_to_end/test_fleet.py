"""Tests of commands on many hosts: three real daemons, beside hosts that are broken in every way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import tomli_w

from tests.end_to_end.conftest import same
from tests.end_to_end.daemon import LVP, Ended, until
from tests.servers.broken import INTERNAL_ERROR, OTHER_JSON, PAGE, answering, broken_server, dripping, endless, silent

if TYPE_CHECKING:
    from pathlib import Path

    from tests.end_to_end.daemon import Daemon

pytestmark = pytest.mark.slow

# Seconds; long enough for a daemon on a busy machine, and waited for in full only by hosts that never answer.
HOST_TIMEOUT = 20
# Which of its limits ends a call first depends on the machine.
LATE = f"did not answer the request in time|no answer within {HOST_TIMEOUT} s"


@dataclass
class Fleet:
    """Daemons, and a settings file with them and others. ``lvp`` runs with this file alone."""

    folder: Path
    daemons: dict[str, Daemon]
    hosts: dict[str, dict[str, str]]

    def write(self) -> None:
        groups = {"good": list(self.daemons), "all": list(self.hosts)}
        (self.folder / "lvp.toml").write_text(tomli_w.dumps({"hosts": self.hosts, "groups": groups}))

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder), "TERM": "dumb"}

    def lvp(self, *args: object, stdin: str | None = None) -> Ended:
        command = [*LVP, *map(str, args)]
        done = subprocess.run(  # noqa: PLW1510
            command, capture_output=True, text=True, env=self.environment, input=stdin, cwd=self.folder
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *args: object) -> subprocess.Popen[str]:
        """Start ``lvp`` without waiting for its end."""
        return subprocess.Popen(
            [*LVP, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        )

    def jobs(self) -> dict[str, list[str]]:
        """Return the status of each host's jobs."""
        return {
            name: [job["status"] for job in daemon.call("GET", "/api/v1/jobs").json()["jobs"]]
            for name, daemon in self.daemons.items()
        }


@pytest.fixture
def fleet(make_daemon, tmp_path):
    """Three daemons, kvm-1 to kvm-3."""
    names = ["kvm-1", "kvm-2", "kvm-3"]
    daemons = {name: make_daemon(name) for name in names}
    for daemon in daemons.values():
        daemon.launch()
    for daemon in daemons.values():
        until(lambda daemon=daemon: daemon.event("ready"))
        daemon.url = daemon.event("ready")["bind"][0]
    hosts = {name: {"url": daemon.url, "token": daemon.token} for name, daemon in daemons.items()}
    folder = tmp_path / "client"
    folder.mkdir()
    made = Fleet(folder, daemons, hosts)
    made.write()
    return made


@pytest.fixture
def broken(fleet):
    """The fleet with hosts between its daemons that are broken; return what each is blamed for."""
    expired = fleet.daemons["kvm-1"]
    expiring = expired.lvp("token", "create", "short", "--expires", "1s", "--config", expired.folder / "config.toml")
    assert expiring.status == 0, expiring.err
    until(lambda: httpx_status(expired, expiring.out.strip()) == 401)
    with ExitStack() as stack:
        at = {
            name: stack.enter_context(broken_server(serve))
            for name, serve in {
                "silent": silent,
                "dripping": dripping,
                "endless": endless,
                "error": answering(INTERNAL_ERROR),
                "page": answering(PAGE),
                "json": answering(OTHER_JSON),
            }.items()
        }
        broken = {
            "silent": ({"url": f"http://{at['silent']}"}, LATE),
            "dripping": ({"url": f"http://{at['dripping']}"}, LATE),
            "endless": ({"url": f"http://{at['endless']}"}, f"answered with more than 64 MiB|{LATE}"),
            "error": ({"url": f"http://{at['error']}"}, "the service failed"),
            "page": ({"url": f"http://{at['page']}"}, "does not answer like a libvirt-volume-provisioner"),
            "json": ({"url": f"http://{at['json']}"}, "the answer is not one of a libvirt-volume-provisioner"),
            "refused": ({"url": "http://127.0.0.1:9"}, "nothing listens at"),
            "plain": ({"url": fleet.daemons["kvm-1"].url.replace("http:", "https:")}, "does not speak TLS"),
            "unknown": ({"url": "http://no-such-host.invalid:8080"}, "no-such-host.invalid"),
            "wrong": ({"url": fleet.daemons["kvm-2"].url, "token": "x" * 40}, "the API token is unknown"),
            "expired": ({"url": expired.url, "token": expiring.out.strip()}, "the API token"),
        }
        healthy = fleet.hosts
        fleet.hosts = {"kvm-1": healthy["kvm-1"], **{name: table for name, (table, _) in broken.items()}, **healthy}
        fleet.write()
        yield {name: words for name, (_, words) in broken.items()}


def httpx_status(daemon, token):
    import httpx

    return httpx.get(daemon.url + "/api/v1/jobs", headers={"X-API-Token": token}, trust_env=False).status_code


def blamed(ended):
    """Return the lines on standard error about hosts, without the summary."""
    *lines, summary = ended.err.splitlines()
    return dict(line.split(": ", 1) for line in lines), summary


def test_broken_hosts_lose_no_others(fleet, broken, server):
    """Each is blamed for what it is, in order, and the three daemons do their work."""
    ended = fleet.lvp(
        "job", "submit", server.of("zlib.qcow2"), "web-{host}", 1, "--hosts", "all", "--host-timeout", HOST_TIMEOUT
    )
    lines, summary = blamed(ended)
    assert list(lines) == [f"{name} web-{name}" for name in broken]
    for name, words in broken.items():
        assert re.search(words, lines[f"{name} web-{name}"]), lines
    assert summary == f"{len(broken)} of {len(broken) + 3} jobs failed"
    assert ended.status == 100 + len(broken)
    rows = [line.split() for line in ended.out.splitlines()[1:]]
    assert [row[0] for row in rows] == list(fleet.hosts)
    assert {row[0] for row in rows if row[-1] == "submitted"} == set(fleet.daemons)
    for name, daemon in fleet.daemons.items():
        (job,) = daemon.call("GET", "/api/v1/jobs").json()["jobs"]
        assert daemon.job_ended(job["job_id"])["status"] == "completed"
        assert daemon.volume(f"web-{name}").exists()


def test_lists_beside_broken_hosts(fleet, broken):
    """Lists, health and top: a row for each, in the order of the hosts; JSON has the host in each."""
    found = fleet.lvp("job", "list", "--json", "--hosts", "all", "--host-timeout", HOST_TIMEOUT)
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert [row["host"] for row in rows] == list(broken)
    assert all(set(row) <= {"host", "error", "message", "code"} for row in rows)
    assert next(row for row in rows if row["host"] == "wrong")["code"] == 401
    health = fleet.lvp("--hosts", "all", "health", "--host-timeout", HOST_TIMEOUT)
    words = {line.split()[0]: line.split()[1] for line in health.out.splitlines()[1:]}
    assert list(words) == list(fleet.hosts)
    assert {name for name, word in words.items() if word == "healthy"} == {*fleet.daemons, "wrong", "expired"}
    top = fleet.lvp("top", "--once", "--hosts", "all", "--host-timeout", HOST_TIMEOUT)
    states = {line.split()[0]: " ".join(line.split()[1:3]) for line in top.out.splitlines()[2:]}
    assert [name for name, state in states.items() if state == "no answer"] == list(broken)
    assert top.status == 100 + len(broken)


def test_wait_on_all(fleet, server, images):
    ended = fleet.lvp("job", "submit", server.of("zlib.qcow2"), "web", 1, "--hosts", "good", "--wait")
    assert ended.status == 0, ended.err
    assert ended.err == "3 completed\n"
    for name, daemon in fleet.daemons.items():
        assert f"{name} web: completed: volume web on files" in ended.out
        assert same(images["zlib.qcow2"], daemon.volume("web"))


def test_prewarm_everywhere(fleet, server):
    ended = fleet.lvp("cache", "fetch", server.of("zlib.qcow2"), "--hosts", "*", "--wait", "--json")
    assert ended.status == 0, ended.err
    last = {row["host"]: row["status"] for row in map(json.loads, ended.out.splitlines())}
    assert last == dict.fromkeys(fleet.daemons, "completed")
    for daemon in fleet.daemons.values():
        assert daemon.call("GET", "/api/v1/cache/images").json()["count"] == 1


def test_some_jobs_fail(fleet, server):
    ended = fleet.lvp("job", "submit", server.of("wrong.qcow2"), "web", 1, "--hosts", "kvm-[1-2]", "--wait")
    assert ended.status == 102
    assert ended.err.splitlines()[0] == "2 failed"
    assert "kvm-2 web: job" in ended.err


BATCH = """
[defaults]
image_url = "{url}"
volume_size_gb = 1
[[volume]]
hosts = "kvm-[1-3]"
volume_name = "web-{{host}}"
[[volume]]
hosts = "kvm-2"
volume_name = "db"
"""


def results(ended):
    return {(row["host"], row["volume_name"]): row.get("result") for row in map(json.loads, ended.out.splitlines())}


def test_batch_again(fleet, server):
    """A second run repeats no work; one whose host was away, whose job failed or whose entry is new does the rest."""
    (fleet.folder / "batch.toml").write_text(BATCH.format(url=server.of("zlib.qcow2")))
    fleet.daemons["kvm-3"].kill()
    first = fleet.lvp("job", "submit", "--batch", "batch.toml", "--wait")
    assert first.status == 101, first.err
    assert fleet.daemons["kvm-3"].start()
    fleet.hosts["kvm-3"]["url"] = fleet.daemons["kvm-3"].url
    fleet.write()
    before = fleet.jobs()
    with (fleet.folder / "batch.toml").open("a") as file:
        url = server.of("wrong.qcow2")
        file.write(f'[[volume]]\nhosts = "kvm-1"\nvolume_name = "bad"\nimage_url = "{url}"\n')
    second = fleet.lvp("job", "submit", "--batch", "batch.toml", "--json")
    assert results(second) == {
        ("kvm-1", "web-kvm-1"): "completed before",
        ("kvm-2", "web-kvm-2"): "completed before",
        ("kvm-3", "web-kvm-3"): "submitted",
        ("kvm-2", "db"): "completed before",
        ("kvm-1", "bad"): "submitted",
    }
    rows = {row["volume_name"]: row for row in map(json.loads, second.out.splitlines())}
    assert fleet.daemons["kvm-1"].job_ended(rows["bad"]["job_id"])["status"] == "failed"
    assert fleet.daemons["kvm-3"].job_ended(rows["web-kvm-3"]["job_id"])["status"] == "completed"
    third = fleet.lvp("job", "submit", "--batch", "batch.toml", "--json")
    again = {row["volume_name"]: row for row in map(json.loads, third.out.splitlines())}
    assert (again["bad"]["result"], again["bad"]["after"]) == ("submitted", rows["bad"]["job_id"])
    assert {name: row["result"] for name, row in again.items() if name != "bad"} == {
        name: "completed before" for name in again if name != "bad"
    }
    assert len(fleet.jobs()["kvm-2"]) == len(before["kvm-2"])
    named = fleet.lvp("job", "submit", "--batch", "batch.toml", "--idempotency-key", "x", "--json")
    assert set(results(named).values()) == {"submitted"}


def test_batch_of_a_newer_image(make_daemon, fleet, server):
    """The name of the image stands for another one at the second run: the volume stays."""
    daemon = make_daemon("named", images={"web": {"url": server.of("zlib.qcow2")}}).start()
    fleet.hosts["named"] = {"url": daemon.url, "token": daemon.token}
    fleet.write()
    entry = json.dumps({"hosts": "named", "volume_name": "a", "image": "web"})
    assert fleet.lvp("job", "submit", "--batch", "-", "--wait", stdin=entry).status == 0
    assert daemon.stop() == 0
    daemon.config["images"]["web"]["url"] = server.of("zstd.qcow2")
    daemon.start()
    fleet.hosts["named"]["url"] = daemon.url
    fleet.write()
    second = fleet.lvp("job", "submit", "--batch", "-", "--json", stdin=entry)
    assert (second.status, results(second)) == (0, {("named", "a"): "made from an older image"})


def test_batch_with_errors_sends_nothing(fleet, server):
    lines = [
        json.dumps({"hosts": "good", "volume_name": f"v{n}", "image_url": server.of("zlib.qcow2")}) for n in range(8)
    ]
    lines[2] = lines[2].replace("volume_name", "volum_name")
    lines[6] = lines[6][:-1]
    ended = fleet.lvp("job", "submit", "--batch", "-", stdin="\n".join(lines))
    assert ended.status == 2
    assert [line.split(":")[1] for line in ended.err.splitlines()[:-1]] == ["3", "3", "7"]
    assert fleet.jobs() == {key: [] for key in fleet.daemons}


def test_dry_run_of_a_batch(fleet, server):
    entries = [
        {"hosts": "good", "volume_name": "a", "image_url": server.of("zlib.qcow2")},
        {"hosts": "kvm-2", "volume_name": "../b", "image_url": server.of("zlib.qcow2")},
        {"hosts": "kvm-3", "volume_name": "c", "image_url": "https://foreign.example.org/x"},
    ]
    ended = fleet.lvp("job", "submit", "--batch", "-", "--dry-run", stdin="\n".join(map(json.dumps, entries)))
    assert ended.status == 102
    assert [line.split()[-1] for line in ended.out.splitlines()[1:]] == ["ok", "ok", "ok", "refused", "refused"]
    assert fleet.jobs() == {key: [] for key in fleet.daemons}


@pytest.fixture
def held(fleet, server):
    """A running job on each host, whose download does not end."""
    server.held = {"full.raw": 2**20}
    ended = fleet.lvp(
        "job", "submit", server.of("full.raw"), "web", 1, "--type", "raw", "--correlation-id", "x", "--hosts", "good"
    )
    assert ended.status == 0, ended.err
    until(lambda: fleet.jobs() == {key: ["running"] for key in fleet.daemons})


def test_watch_and_cancel(fleet, held):
    """Cancelled with a wrong selection, then one, then all; who watches sees how they end."""
    watching = fleet.start("job", "watch", "--hosts", "good")
    assert fleet.lvp("job", "cancel", "--hosts", "good").status == 2
    assert fleet.lvp("job", "cancel", "--hosts", "good", "--volume", "none").status == 4
    one = fleet.daemons["kvm-2"].call("GET", "/api/v1/jobs").json()["jobs"][0]["job_id"]
    cancelled = fleet.lvp("job", "cancel", one[:13], "--hosts", "good")
    assert cancelled.status == 0, cancelled.err
    assert [line.split()[0] for line in cancelled.out.splitlines()[1:]] == ["kvm-2"]
    cancelled = fleet.lvp("job", "cancel", "--hosts", "good", "--correlation-id", "x", "--json")
    assert [(row["host"], row["status"]) for row in map(json.loads, cancelled.out.splitlines())] == [
        ("kvm-1", "cancelled"),
        ("kvm-3", "cancelled"),
    ]
    out, err = watching.communicate(timeout=90)
    assert watching.returncode == 103, err
    assert {line for line in out.splitlines() if "cancelled" in line} == {f"kvm-{n} web: cancelled" for n in (1, 2, 3)}
    assert err.splitlines()[0] == "3 cancelled"
    assert fleet.lvp("job", "cancel", "--hosts", "good", "--all").status == 4


def test_interrupted_watch_leaves_jobs(fleet, held, server):
    watching = fleet.start("job", "watch", "--hosts", "good")
    assert "downloading" in watching.stdout.readline() + watching.stdout.readline() + watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=90)
    assert watching.returncode == 130
    assert "Stopped waiting; 3 jobs continue." in err
    assert "lvp job watch --hosts 'kvm-1,kvm-2,kvm-3'" in err
    assert fleet.jobs() == {key: ["running"] for key in fleet.daemons}
    server.let_go.set()
    finished = fleet.lvp("job", "watch", "--hosts", "good")
    assert finished.status == 0, finished.err


def test_watch_over_a_restart(fleet, held, server):
    """A host that is killed and comes back is followed again; the others are not disturbed."""
    watching = fleet.start("job", "watch", "--hosts", "good")
    assert watching.stdout.readline()
    daemon = fleet.daemons["kvm-2"]
    daemon.config["server"]["bind"] = [daemon.url.removeprefix("http://")]
    daemon.kill()
    assert "kvm-2: no answer, retrying for" in watching.stderr.readline()
    server.let_go.set()
    daemon.start()
    _, err = watching.communicate(timeout=90)
    assert watching.returncode == 0, err
    assert "3 completed" in err


def test_watch_a_host_that_is_gone(fleet, held, server):
    """After the patience its job counts as failed, and the others are waited for."""
    watching = fleet.start("job", "watch", "--hosts", "good", "--patience", "0")
    assert watching.stdout.readline()
    fleet.daemons["kvm-2"].kill()
    server.let_go.set()
    _, err = watching.communicate(timeout=90)
    assert watching.returncode == 101, err
    assert "2 completed, 1 unknown" in err
    assert "continues there; nothing listens at" in err


@pytest.mark.parametrize("command", [["job", "list"], ["health", "--json"], ["top"], ["top", "--once"]])
def test_reader_gone(fleet, command, server):
    """As in ``| head -1``: no error, and no message."""
    assert fleet.lvp("job", "submit", server.of("zlib.qcow2"), "web", 1, "--hosts", "good", "--wait").status == 0
    with fleet.start(*command, "--hosts", "good") as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(90) == 0
