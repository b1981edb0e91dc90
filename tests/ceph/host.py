"""What a test needs of one host: a target with its own state directory, and clients that have an image open."""

import json
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from lvp_target_rbd import RbdSettings, RbdTarget
from provisioner.contracts import BackEndContext, Duration, SecretRef
from tests.ceph.cluster import POOL

# Opens an image as a guest does, says so, and closes it at the end of its input.
_HOLDER = """
import sys, rados, rbd
conf, keyring, pool, namespace, image = sys.argv[1:]
with rados.Rados(conffile=conf, rados_id="admin", conf={"keyring": keyring}) as cluster:
    with cluster.open_ioctx(pool) as io:
        io.set_namespace(namespace)
        with rbd.Image(io, image):
            print("open", flush=True)
            sys.stdin.read()
"""


class Place:
    """A namespace of the cluster, and the client whose key may work in it alone."""

    def __init__(self, ceph, folder, pool=POOL, data_pool=""):
        self.ceph, self.folder, self.pool, self.data_pool = ceph, Path(folder), pool, data_pool
        self.namespace = ceph.make_namespace(pool)
        self.user = f"lvp-{pool}-{self.namespace}"
        pools = [pool, data_pool] if data_pool else [pool]
        caps = (f"profile rbd pool={one} namespace={self.namespace}" for one in pools)
        self.keyring = ceph.make_user(self.user, "mon", "profile rbd", "osd", ", ".join(caps))
        self.faults = self.folder / "faults"
        self.faults.mkdir(parents=True)
        self.python = self.faults / "python"
        shutil.copy(Path(__file__).with_name("faulty_python.py"), self.python)
        self.python.chmod(0o755)

    @property
    def spec(self):
        return f"{self.pool}/{self.namespace}"

    def settings(self, **more):
        values = {
            "pool": self.pool, "namespace": self.namespace, "conf": str(self.ceph.conf), "user": self.user,
            "keyring": SecretRef(f"file:{self.keyring}"), "stale_client_wait": Duration(0), "python": str(self.python),
            "op_timeout": Duration(20), "data_pool": self.data_pool,
        }  # fmt: skip
        return RbdSettings(**{**values, **more})

    def target(self, state="state", make=RbdTarget, **more):
        return make(self.settings(**more), BackEndContext("ceph", self.folder / state))

    def read(self, name, length=-1):
        """Return the first bytes of an image."""
        command = self.command("rbd", "export", "--no-progress", f"{self.spec}/{name}", "-")
        data = subprocess.run(command, check=True, capture_output=True).stdout
        return data if length < 0 else data[:length]

    def extents(self, name):
        """Return the size of an image, the end of what is stored of it (the rest reads as zeros), and that content."""
        script = (
            "import sys, rados, rbd\n"
            "conf, keyring, pool, namespace, image = sys.argv[1:]\n"
            "ends = [0]\n"
            "with rados.Rados(conffile=conf, rados_id='admin', conf={'keyring': keyring}) as c:\n"
            "    with c.open_ioctx(pool) as io:\n"
            "        io.set_namespace(namespace)\n"
            "        with rbd.Image(io, image, read_only=True) as i:\n"
            "            i.diff_iterate(0, i.size(), None, lambda at, n, there: there and ends.append(at + n))\n"
            "            print(i.size(), max(ends), flush=True)\n"
            "            with open(sys.stdout.fileno(), 'wb', closefd=False) as out: out.write(i.read(0, max(ends)))\n"
        )
        out = subprocess.run(self._python(script, name), check=True, capture_output=True).stdout
        figures, _, content = out.partition(b"\n")
        size, end = map(int, figures.split())
        return size, end, content

    def write(self, name, data, size=0):
        """Write at the start of an image; create it first if a size is given."""
        if size:
            self.ceph.rbd("create", f"{self.spec}/{name}", "--size", f"{size}B")
        script = (
            "import sys, rados, rbd\n"
            "conf, keyring, pool, namespace, image, data = sys.argv[1:]\n"
            "with rados.Rados(conffile=conf, rados_id='admin', conf={'keyring': keyring}) as c:\n"
            "    with c.open_ioctx(pool) as io:\n"
            "        io.set_namespace(namespace)\n"
            "        with rbd.Image(io, image) as i: i.write(bytes.fromhex(data), 0)\n"
        )
        subprocess.run(self._python(script, name, data.hex()), check=True, capture_output=True)

    def remove_base(self, name):
        """Remove a base as an administrator would: its clones get the data first."""
        rbd, spec = self.ceph.rbd, f"{self.spec}/{name}"
        for child in json.loads(rbd("children", "--format", "json", f"{spec}@image") or "[]"):
            rbd("flatten", "--no-progress", f"{self.spec}/{child['image']}")
        rbd("snap", "unprotect", f"{spec}@image")
        rbd("snap", "rm", "--no-progress", f"{spec}@image")
        rbd("rm", "--no-progress", spec)

    def names(self):
        """Return the names of all images."""
        return set(json.loads(self.ceph.rbd("ls", "--format", "json", self.spec) or "[]"))

    def info(self, name):
        return json.loads(self.ceph.rbd("info", "--format", "json", f"{self.spec}/{name}"))

    def objects(self, pool=None):
        """Return the names of all objects in a pool except those that hold its directory."""
        listed = self.ceph.rados("--pool", pool or self.pool, "--namespace", self.namespace, "ls").split()
        return {name for name in listed if name not in {"rbd_directory", "rbd_children", "rbd_info", "rbd_trash"}}

    def command(self, tool, *words):
        admin = ("--conf", str(self.ceph.conf), "--keyring", str(self.ceph.admin_keyring), "--id", "admin")
        return [tool, *admin, *words]

    def hold(self, name):
        """Return a process that has the image open until its input ends."""
        process = subprocess.Popen(
            self._python(_HOLDER, name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "open\n", process.stderr.read()
        return process

    @contextmanager
    def holding(self, name):
        process = self.hold(name)
        try:
            yield process
        finally:
            release(process)

    @contextmanager
    def fault(self, function, when, action, *, number=1, call=None):
        """Do something at one point of the target's calls; see ``faulty_python``. Yields the folder of the files."""
        plan = {"function": function, "when": when, "action": action, "number": number, "call": call}
        (self.faults / "plan.json").write_text(json.dumps(plan))
        try:
            yield self.faults
        finally:
            self.clear_fault()

    def calls(self):
        """Return the names of the calls that were made with ``python``."""
        return (self.faults / "calls").read_text().split()

    def clear_fault(self):
        for name in ("plan.json", "reached", "go"):
            (self.faults / name).unlink(missing_ok=True)

    @contextmanager
    def opening_at(self, name, function, when, call=None):
        """Open an image at one point of the target's calls, and keep it open until the block ends."""
        holders = []

        def opener():
            while not over.is_set():
                if (self.faults / "reached").exists():
                    holders.append(self.hold(name))
                    (self.faults / "go").touch()
                    return
                time.sleep(0.01)

        over = threading.Event()
        thread = threading.Thread(target=opener)
        with self.fault(function, when, "pause", call=call):
            thread.start()
            try:
                yield holders
            finally:
                over.set()
                thread.join()
                for holder in holders:
                    release(holder)

    def _python(self, script, name, *more):
        where = (str(self.ceph.conf), str(self.ceph.admin_keyring), self.pool, self.namespace, name)
        return ["/usr/bin/python3", "-I", "-c", script, *where, *more]


def release(process):
    """End a process that has an image open, as a guest that is shut down."""
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()
    process.stderr.close()
