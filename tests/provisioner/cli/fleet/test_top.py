"""Tests of ``lvp top`` on a real pseudo-terminal, on one that is dumb, and in pipes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

LVP = [sys.executable, "-m", "provisioner.cli"]
TARGETS, JOBS, EVENTS = "/api/v1/targets", "/api/v1/jobs", "/api/v1/events"
# Seconds; only ends tests that hang.
LIMIT = 60.0


class Terminal:
    """A program on a terminal of a given size."""

    def __init__(self, command, environment, columns, lines):
        self.master, slave = pty.openpty()
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, process_group=0
        )
        self.slave, self.output = slave, ""

    def resize(self, columns, lines):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, pattern):
        """Read until the output matches; return what was read since the last time."""
        stop = time.monotonic() + LIMIT
        while not re.search(pattern, self.output, re.DOTALL):
            assert time.monotonic() < stop, self.output
            if select.select([self.master], [], [], 0.1)[0]:
                self.output += os.read(self.master, 65536).decode(errors="replace")
            else:
                assert self.process.poll() is None, self.output
        read, self.output = self.output, ""
        return read

    def press(self, keys):
        os.write(self.master, keys.encode())

    def end(self):
        """Return the exit status, with the rest of the output read."""
        status = self.process.wait(LIMIT)
        while select.select([self.master], [], [], 0)[0]:
            self.output += os.read(self.master, 65536).decode(errors="replace")
        return status


@pytest.fixture
def environment(home, server):
    """Two hosts, one of which does not answer."""
    server.on("GET", "/health", "HealthHealthy")
    server.on("GET", TARGETS, "TargetList")
    server.on("GET", JOBS, "JobListPage")
    (home / "config" / "lvp.toml").write_text(
        f'[hosts.a]\nurl = "{server.url}"\n[hosts.b]\nurl = "http://127.0.0.1:9"\n'
    )
    return {**os.environ, "TERM": "xterm", "HOME": str(home)}


@pytest.fixture
def terminal(environment):
    """Return a function that starts ``lvp`` on a terminal."""
    started = []

    def start(*args, columns=80, lines=24, **more):
        started.append(Terminal([*LVP, *args], {**environment, **more}, columns, lines))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        os.close(one.master)
        os.close(one.slave)


pytestmark = pytest.mark.slow
TOP = ["top", "--hosts", "a,b", "--interval", "0.5"]
KNOWN = r"a +healthy.*b +no answer.*\x1b\[J"


def widest(text):
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.replace("\x1b[H", "\n"))
    return max(len(line.rstrip("\r")) for line in plain.split("\n"))


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_top_fits_and_quits(terminal, columns):
    """The other screen is left at the end, and the terminal's modes are as before."""
    screen = terminal(*TOP, columns=columns)
    shown = screen.until(KNOWN)
    assert shown.startswith("\x1b[?1049h\x1b[?25l")
    assert widest(shown) <= columns
    assert "\x1b[31mb" in shown
    screen.press("q")
    assert screen.end() == 0
    assert screen.output.endswith("\x1b[?25h\x1b[?1049l")
    assert termios.tcgetattr(screen.slave) == screen.modes


def test_top_follows_the_size(terminal):
    screen = terminal(*TOP)
    screen.until(KNOWN)
    screen.resize(40, 3)
    narrow = screen.until(r"0 running, 1~\x1b\[0m\x1b\[K\r")
    assert widest(narrow.rpartition("\x1b[H")[2]) <= 40
    screen.press("q")
    assert screen.end() == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_top_is_ended_by_signals(terminal, number, status):
    screen = terminal(*TOP)
    screen.until(KNOWN)
    screen.process.send_signal(number)
    assert screen.end() == status
    assert screen.output.endswith("\x1b[?25h\x1b[?1049l")
    assert termios.tcgetattr(screen.slave) == screen.modes


def test_top_without_colours(terminal):
    screen = terminal(*TOP, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*m", screen.until(KNOWN))


def test_top_on_a_dumb_terminal(terminal):
    """Snapshots, one after the other, until Ctrl-C."""
    screen = terminal(*TOP, TERM="dumb")
    screen.until(r"b +no answer.*hosts.*b +no answer")
    assert "\x1b" not in screen.output
    screen.process.send_signal(signal.SIGINT)
    assert screen.end() == 130


def run(environment, *args):
    return subprocess.run([*LVP, *args], env=environment, capture_output=True, text=True, check=False, timeout=LIMIT)


def test_top_once(environment):
    ended = run(environment, "top", "--hosts", "a,b", "--once")
    assert ended.returncode == 101
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["HOST", "a", "b"]
    assert "%" in lines[2]
    assert ended.stderr.splitlines()[-1] == "1 of 2 hosts failed"


def test_top_once_as_objects(environment):
    ended = run(environment, "top", "--hosts", "a,b", "--once", "--json")
    first, second = map(json.loads, ended.stdout.splitlines())
    assert (first["host"], first["health"]["status"], bool(first["targets"])) == ("a", "healthy", True)
    assert (second["host"], second["error"]) == ("b", "unreachable")


def test_top_of_one_server(environment, server):
    ended = run(environment, "top", "--once", "--url", server.url)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[2].startswith(server.url.removeprefix("http://"))


def test_watch_on_a_terminal(terminal, server):
    """A table of the jobs while they run; q leaves them running."""
    page = {"jobs": [{"job_id": "f47ac10b-58cc-4372-a567-0e02b2c3d479", "status": "running", "created_at": "x"}]}
    server.on("GET", JOBS, {**page, "count": 1, "offset": 0, "limit": 100})
    screen = terminal("job", "watch", "--hosts", "a", columns=60)
    shown = screen.until(r"1 running.*HOST.*a +f47ac10b +running")
    assert widest(shown) <= 60
    screen.press("q")
    assert screen.end() == 130
    assert "Stopped waiting; 1 job continues." in screen.output


@pytest.mark.parametrize("command", [["top", "--once"], ["health"], ["job", "list"], ["job", "watch"]])
def test_without_standard_output(environment, server, command):
    """Closed by the caller, as services may have it: no traceback."""
    server.on("GET", JOBS, {"jobs": [], "count": 0, "offset": 0, "limit": 100})
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *LVP, *command, "--hosts", "a"]
    ended = subprocess.run(closed, env=environment, stderr=subprocess.PIPE, text=True, check=False, timeout=LIMIT)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr


def test_top_is_stopped_and_continues(terminal):
    """After Ctrl-Z the terminal is the shell's; then the page is there again."""
    screen = terminal(*TOP)
    screen.until(KNOWN)
    screen.process.send_signal(signal.SIGTSTP)
    screen.until(r"\x1b\[\?1049l")
    os.waitid(os.P_PID, screen.process.pid, os.WSTOPPED | os.WNOWAIT)
    assert termios.tcgetattr(screen.slave) == screen.modes
    screen.process.send_signal(signal.SIGCONT)
    screen.until(r"\x1b\[\?1049h.*a +healthy")
    screen.press("q")
    assert screen.end() == 0
    assert termios.tcgetattr(screen.slave) == screen.modes
