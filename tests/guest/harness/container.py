"""A container: the guest's Debian under systemd on this machine's own kernel, with the interface of a guest.

It boots in seconds and runs at this machine's speed, while a guest may be emulated. But it has no device-mapper of its
own, so tests that need LVM need a guest.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from .guest import GuestError, Result
from .images import Images

BOOT_TIMEOUT = 120  # seconds; a boot takes 3 s on an idle machine
STOP_TIMEOUT = 30  # seconds
# The agent expects the network of qemu, so it does not run in a container.
LEFT_OUT = "etc/systemd/system/multi-user.target.wants/guest-agent.service"
# Runs in its own mount namespace, so that nothing stays mounted here however it ends. It gets SIGTERM when its parent
# process dies, and then removes its files.
START = """
set -e
# The services in it have the priority of a host's, whatever that of the tests is.
renice -n 0 -p $$ >&2
mount -o loop,suid,dev "$1/root.raw" "$1/root"
rm -f "$1/root/$2"
mkdir -p "$1/root/project"
# Debian 13's systemd boots on the unified hierarchy only.
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then mount -t cgroup2 cgroup2 /sys/fs/cgroup; fi
systemd-nspawn --quiet --boot --directory="$1/root" --private-network --register=no --keep-unit \
    --system-call-filter="landlock_create_ruleset landlock_add_rule landlock_restrict_self" \
    --notify-ready=yes --link-journal=no --suppress-sync=yes --console=pipe < /dev/null &
trap 'kill -TERM $!' TERM
wait $! || true
wait || true
umount --lazy "$1/root"
rm -rf "$1"
"""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root",
}  # fmt: skip
PIECE = 1 << 16
NETWORK = 0x40000000  # CLONE_NEWNET


class Container:
    """A container; `with Container(images, ports=[8080]) as container: container.boot()`."""

    def __init__(self, images: Images, *, ports: list[int]) -> None:
        self._images = images
        self._ports = dict.fromkeys(ports, 0)
        self._listening: list[socket.socket] = []

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="lvp-container-"))
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        try:
            (self.directory / "root").mkdir()
            root = self.directory / "root.raw"
            subprocess.run(["cp", "--sparse=auto", "--reflink=auto", self._images.root, root], check=True)
            self._manager.bind(str(self.directory / "notify"))
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._process:
            if self._leader:
                os.kill(self._leader, signal.SIGKILL)  # its init: all processes in it end at once
            else:
                self._process.terminate()
            self._process.wait(STOP_TIMEOUT)
        self._clear()

    def _clear(self) -> None:
        for listening in self._listening:
            listening.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
            listening.close()
        with contextlib.suppress(OSError):
            self._manager.shutdown(socket.SHUT_RDWR)
        self._manager.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def boot(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Start the container and wait until its systemd has started all units."""
        command = ["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "sh", "-c", START]
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "container", str(self.directory), LEFT_OUT],
                env={**os.environ, "NOTIFY_SOCKET": str(self.directory / "notify")},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._leader = self._wait_ready(timeout)
        # Its init keeps sending notifications and would block without a reader.
        threading.Thread(target=self._listen_on, daemon=True).start()
        for port in self._ports:
            listening = socket.create_server(("127.0.0.1", 0))
            self._listening.append(listening)
            self._ports[port] = listening.getsockname()[1]
            threading.Thread(target=self._forward, args=(listening, port), daemon=True).start()

    def _wait_ready(self, timeout: float) -> int:
        leader = 0
        self._manager.settimeout(timeout)
        while True:
            try:
                said = self._manager.recv(4096).decode().splitlines()
            except TimeoutError:
                raise GuestError(f"the container was not ready within {timeout:.0f} s\n{self._log()}") from None
            for line in said:
                leader = int(line.partition("=")[2]) if line.startswith("X_NSPAWN_LEADER_PID=") else leader
            if "READY=1" in said:
                return leader

    def _listen_on(self) -> None:
        self._manager.settimeout(None)
        with contextlib.suppress(OSError):
            while self._manager.recv(4096):
                pass

    def port(self, number: int) -> int:
        """Return the loopback port of this machine that is forwarded to the container's port."""
        return self._ports[number]

    def run(self, argv: list[str], *, silence: float = 240, total: float = 1200) -> Result:
        """Run a command as root. Only guests use ``silence``; here only ``total`` limits the command."""
        del silence
        try:
            ended = subprocess.run(
                [*self.inside(), *argv], env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=total, text=True, errors="replace", check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as expired:
            raise GuestError(f"the command did not end within {total:.0f} s: {argv}\n{self._log()}") from expired
        return Result(ended.returncode, ended.stdout)

    def sh(self, script: str, **options: float) -> str:
        """Run a shell script and return its output; raise if its status is not 0."""
        result = self.run(["sh", "-ec", script], **options)
        if result.status:
            raise GuestError(f"status {result.status} from: {script}\n{result.output}")
        return result.output

    def start(self, argv: list[str], log: str) -> None:
        """Start a command in the background, with its output in the container's file `log`."""
        self.run(["sh", "-c", 'log=$0; setsid "$@" > "$log" 2>&1 < /dev/null &', log, *argv])

    def put(self, content: bytes | Path, path: str, mode: int = 0o644) -> None:
        """Write a file in the container."""
        data = content.read_bytes() if isinstance(content, Path) else content
        script = 'mkdir -p "$(dirname "$0")" && cat > "$0" && chmod "$1" "$0"'
        subprocess.run([*self.inside(), "sh", "-c", script, path, f"{mode:o}"], input=data, env=ENVIRONMENT, check=True)

    def inside(self) -> list[str]:
        """Return the start of the command line that runs a command in the container from this machine."""
        return ["nsenter", "--target", str(self._leader), "--all", "--"]

    def _log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-3000:]

    def _forward(self, listening: socket.socket, port: int) -> None:
        """Forward connections into the container. This thread moves into the container's network namespace."""
        with Path(f"/proc/{self._leader}/ns/net").open() as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), NETWORK):
                raise OSError(ctypes.get_errno(), "setns")
        with contextlib.suppress(OSError):  # until the listening socket is closed
            while True:
                outer, _ = listening.accept()
                try:
                    inner = socket.create_connection(("127.0.0.1", port))
                except OSError:
                    outer.close()
                    continue
                threading.Thread(target=_carry_both, args=(outer, inner), daemon=True).start()


def _carry_both(outer: socket.socket, inner: socket.socket) -> None:
    with outer, inner:
        back = threading.Thread(target=_carry, args=(inner, outer), daemon=True)
        back.start()
        _carry(outer, inner)
        back.join()


def _carry(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := one.recv(PIECE):
            other.sendall(piece)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_WR)
