"""A small real Ceph on loopback: a monitor, a manager and OSDs, usually one in memory, in a folder of its own.

Nothing of the host is read or changed: configuration, keys, sockets and process ids are in the folder, the monitor has
a free port, and every process is ended by its id.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

POOL = "vms"
# Seconds.
_START, _STOP, _CALL = 60, 20, 60

_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}]
public network = 127.0.0.0/8
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
run dir = {folder}
log file = {folder}/$type.log
mon cluster log file = {folder}/cluster.log
crash dir = {folder}
mon allow pool size one = true
mon allow pool delete = true
mon warn on pool no redundancy = false
mon osd full ratio = 0.97
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
[mon]
pid file = {folder}/$name.pid
keyring = {folder}/admin.keyring
admin socket = {folder}/$name.asok
mon data = {folder}/mon
mon data avail crit = 1
mon data avail warn = 2
mon initial members = a
[mgr]
pid file = {folder}/$name.pid
keyring = {folder}/admin.keyring
admin socket = {folder}/$name.asok
mgr data = {folder}/mgr
mgr initial modules =
mgr_standby_modules = false
mgr_stats_period = 1
[osd]
pid file = {folder}/$name.pid
keyring = {folder}/admin.keyring
admin socket = {folder}/$name.asok
osd data = {folder}/$name
osd objectstore = {store}
osd heartbeat grace = 600
osd memory target = 939524096
osd mgr report interval = 1
osd client watch timeout = {watch_timeout}
memstore device bytes = {size}
bluestore block size = {size}
bluestore block wal create = false
bluestore block db create = false
"""
# Clients read a file of their own, as on a host: only the monitor's address.
_CLIENT_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}]
"""


class Cluster:
    """A running cluster. ``conf`` is what a client's ceph.conf contains; ``admin_keyring`` may do everything."""

    def __init__(self, folder, size=2 * 1024**3, watch_timeout=10, osds=1, store="memstore"):
        """``size`` is that of each OSD, in bytes. The store ``bluestore`` keeps it in a sparse file."""
        self.folder = Path(folder)
        self.size, self.osds, self.store = size, osds, store
        self.watch_timeout = watch_timeout
        self.conf = self.folder / "ceph.conf"
        self.admin_keyring = self.folder / "admin.keyring"
        self._server_conf = self.folder / "server.conf"
        self._namespaces = 0
        # Process ids by the servers' names, as in "osd.0".
        self.pids = {}

    def start(self):
        folder = self.folder
        osds = [f"osd.{number}" for number in range(self.osds)]
        for name in ("mon", "mgr", *osds):
            (folder / name).mkdir(parents=True)
        values = {"fsid": str(uuid.uuid4()), "port": _free_port(), "folder": folder}
        values |= {"size": self.size, "store": self.store}
        values["watch_timeout"] = self.watch_timeout
        self._server_conf.write_text(_CONF.format(**values))
        self.conf.write_text(_CLIENT_CONF.format(**values))
        keyring = str(self.admin_keyring)
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
        self._run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *everything)
        for server, profile in (("mgr.x", "allow profile mgr"), *((osd, "allow profile osd") for osd in osds)):
            self._run("ceph-authtool", keyring, "--gen-key", "-n", server, "--cap", "mon", profile, *everything[3:])
        monmap = str(folder / "monmap")
        address = f"[v2:127.0.0.1:{values['port']}]"
        self._run("monmaptool", "--create", "--fsid", values["fsid"], "--addv", "a", address, monmap)
        self._server("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._server("ceph-mon", "-i", "a")
        self._server("ceph-mgr", "-i", "x")
        for number in range(self.osds):
            self._add_osd(str(number))
        self.make_pool(POOL)

    def _add_osd(self, number):
        secret = str(uuid.uuid4())
        self.ceph("osd", "new", secret, number)
        self._server("ceph-osd", "-i", number, "--mkfs", "--osd-uuid", secret)
        self._server("ceph-osd", "-i", number)

    def stop(self):
        """End every server by its id, and wait until it is gone."""
        for pid in self.pids.values():
            _signal(pid, signal.SIGCONT)
            _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP
        for pid in self.pids.values():
            while _alive(pid):
                if time.monotonic() > deadline:
                    _signal(pid, signal.SIGKILL)
                time.sleep(0.02)

    @contextmanager
    def stopped(self, *names):
        """Freeze servers, as a machine does that hangs; continue them at the end."""
        for name in names:
            os.kill(self.pids[name], signal.SIGSTOP)
        try:
            yield
        finally:
            for name in names:
                os.kill(self.pids[name], signal.SIGCONT)

    @contextmanager
    def full(self):
        """Make the cluster full by lowering its ratios to what it has stored; at the end, there is room again."""
        dump = self.json("osd", "dump")
        before = {name: str(dump[f"{name}_ratio"]) for name in ("nearfull", "backfillfull", "full")}
        self.rados("--pool", POOL, "put", "ballast", str(Path("/bin/bash").resolve()))
        try:
            for name in before:
                self.ceph("osd", f"set-{name}-ratio", str(1024**2 / self.size / self.osds))
            self.wait_for(lambda: self._full_pools() == {True})
            yield
        finally:
            for name in reversed(before):
                self.ceph("osd", f"set-{name}-ratio", before[name])
            self.wait_for(lambda: self._full_pools() == {False})
            self.rados("--pool", POOL, "rm", "ballast")

    def _full_pools(self):
        """Return whether pools are full, by their flags and by the space that is reported a little later."""
        flags = ("full" in pool["flags_names"].split(",") for pool in self.json("osd", "dump")["pools"])
        return {*flags, *(pool["stats"]["max_avail"] == 0 for pool in self.json("df")["pools"])}

    def make_pool(self, name, *words):
        self.ceph("osd", "pool", "create", name, "8", *words)
        self.ceph("osd", "pool", "application", "enable", name, "rbd")
        self.wait_for(lambda: self._is_active(name))
        if "erasure" in words:
            self.ceph("osd", "pool", "set", name, "allow_ec_overwrites", "true")
        self.rbd("pool", "init", name)

    def make_namespace(self, pool=POOL):
        """Return a new namespace, so that tests do not see each other's images."""
        self._namespaces += 1
        name = f"test{self._namespaces}"
        self.rbd("namespace", "create", f"{pool}/{name}")
        return name

    def make_user(self, name, *caps):
        """Create a client with these capabilities; return its keyring."""
        path = self.folder / f"{name}.keyring"
        path.write_text(self.ceph("auth", "get-or-create", f"client.{name}", *caps))
        return path

    def ceph(self, *words, timeout=_CALL):
        return self._run("ceph", *self._as_admin(), *words, timeout=timeout)

    def rbd(self, *words, check=True):
        return self._run("rbd", *self._as_admin(), *words, check=check)

    def rados(self, *words, check=True):
        return self._run("rados", *self._as_admin(), *words, check=check)

    def json(self, *words):
        return json.loads(self.ceph("--format", "json", *words))

    def wait_for(self, condition, seconds=_START):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s in vain"
            time.sleep(0.05)

    def _is_active(self, pool):
        states = self.json("pg", "ls-by-pool", pool)["pg_stats"]
        return bool(states) and all(one["state"] == "active+clean" for one in states)

    def _as_admin(self):
        return ("--conf", str(self.conf), "--keyring", str(self.admin_keyring), "--id", "admin")

    def _server(self, *words):
        self._run(words[0], "--conf", str(self._server_conf), "--keyring", str(self.admin_keyring), *words[1:])
        name = f"{words[0].removeprefix('ceph-')}.{words[2]}"
        if "--mkfs" not in words:
            self.wait_for((self.folder / f"{name}.pid").exists)
            self.pids[name] = int((self.folder / f"{name}.pid").read_text())

    def _run(self, *argv, check=True, timeout=_CALL):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CEPH_")}
        # The OSD of Debian 13 looks for its classes in a relative folder, below the one it is started in.
        quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "cwd": "/"}
        done = subprocess.run(argv, check=False, timeout=timeout, env=environment, **quiet)
        assert done.returncode == 0 or not check, f"{' '.join(argv)}: {done.stderr}"
        return done.stdout


@contextmanager
def cluster(folder, **settings):
    """Run a cluster in ``folder``; its processes and files are gone at the end."""
    running = Cluster(folder, **settings)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _signal(pid, number):
    if pid is not None and _alive(pid):
        os.kill(pid, number)


def _alive(pid):
    if pid is None:
        return False
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
