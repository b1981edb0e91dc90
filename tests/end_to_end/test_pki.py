"""Mutual TLS from nothing: the four commands of the README, the lines they print, a real daemon and a volume."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest
import tomli_w

from tests.end_to_end.conftest import same
from tests.end_to_end.daemon import LVP, Ended, until
from tests.provisioner.cli.test_pki_commands import part

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def commands(page):
    """The commands of the console block that sets up mutual TLS."""
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "lvp pki init" in block]
    return [shlex.split(line.removeprefix("# "), comments=True) for line in block.splitlines()]


def test_pages_have_the_same_commands():
    assert commands("README.md") == commands("docs/operating.md")
    assert len(commands("README.md")) == 4


class Machine:
    """Runs ``lvp`` with a home of its own."""

    def __init__(self, folder):
        self.pki = folder / "pki"
        self.settings = folder / ".config" / "lvp.toml"
        self.settings.parent.mkdir()
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("LVP_", "XDG_"))}
        self.environment = {**kept, "HOME": str(folder)}

    def lvp(self, *args):
        command = [*LVP, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment)
        return Ended(done.returncode, done.stdout, done.stderr)

    def pki_command(self, words):
        """One of the README's commands, on names that lead to this machine."""
        words = ["localhost" if word == "kvm-7.example.org" else word for word in words]
        ended = self.lvp(*words[1:], "--dir", self.pki)
        assert (ended.status, ended.err) == (0, "")
        return ended.out


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_mutual_tls_in_four_commands(machine, make_daemon, server, images):
    init, for_server, for_client, start = commands("README.md")
    machine.pki_command(init)
    lines = tomllib.loads(machine.pki_command(for_server))
    out = machine.pki_command(for_client)
    grants = tomllib.loads(part(out, "server"))
    assert start == ["systemctl", "enable", "--now", "libvirt-volume-provisioner"]
    # Pasted as they are, except the port: that of the test's daemon.
    daemon = make_daemon(server={**lines["server"], "bind": ["127.0.0.1:0"]}, auth=grants["auth"]).start()
    port = daemon.url.rpartition(":")[2]
    machine.settings.write_text(part(out, "client").replace(":8080", f":{port}"))

    assert machine.lvp("health").out.startswith("healthy, ")
    image = images["zlib.qcow2"]
    ended = machine.lvp("job", "submit", server.of("zlib.qcow2"), "web-01", 1, "--wait")
    assert (ended.status, ended.err) == (0, "")
    assert same(image, daemon.volume("web-01"))
    refused = machine.lvp("cache", "prune")
    words = "Error: terraform has the role operator; this needs admin [forbidden]\n"
    assert (refused.status, refused.err) == (4, words)
    without = machine.lvp("job", "list", "--url", f"https://localhost:{port}", "--cert", _stranger(machine))
    assert without.status == 5
    assert "the server does not trust its CA" in without.err
    assert daemon.stop() == 0


def _stranger(machine):
    """A client certificate of the same name, of another CA, in one file with its key."""
    folder = machine.pki.with_name("stranger")
    machine.lvp("pki", "init", "--dir", folder)
    machine.lvp("pki", "client", "terraform", "--dir", folder)
    both = folder / "both.pem"
    pair = folder / "clients" / "terraform"
    both.write_text(pair.with_suffix(".pem").read_text() + pair.with_suffix(".key").read_text())
    return both


def test_renewed_and_revoked(machine, make_daemon):
    """A renewed server certificate is used without a restart; a revoked client is refused after a reload."""
    machine.lvp("pki", "init", "--dir", machine.pki)
    lines = tomllib.loads(machine.lvp("pki", "server", "localhost", "--dir", machine.pki).out)
    machine.settings.write_text(part(machine.lvp("pki", "client", "ci", "--dir", machine.pki).out, "client"))
    daemon = make_daemon(server={**lines["server"], "bind": ["127.0.0.1:0"]}).start()
    url = f"https://localhost:{daemon.url.rpartition(':')[2]}"
    assert machine.lvp("job", "list", "--url", url).status == 0
    assert machine.lvp("pki", "server", "localhost", "--force", "--dir", machine.pki).status == 0
    until(lambda: daemon.event("TLS files changed; new connections use them"))
    assert machine.lvp("job", "list", "--url", url).status == 0

    shown = machine.lvp("pki", "show", "--dir", machine.pki).out
    (serial,) = re.findall(r"^client +ci .* ([0-9a-f]{20,}) ", shown, re.MULTILINE)
    daemon.config["auth"]["revoked_certificates"] = [f"serial:{serial}"]
    (daemon.folder / "config.toml").write_text(tomli_w.dumps(daemon.config))
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.event("reloaded"))
    refused = machine.lvp("job", "list", "--url", url)
    assert refused.status == 4
    assert refused.err.startswith("Error: the client certificate is revoked; name another with --cert")
    assert daemon.stop() == 0
