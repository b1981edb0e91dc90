"""A guest: its files, its boots and power cuts, and the commands run in it."""

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from . import agent
from .drives import GIB, TEST_DRIVES, Drive, create
from .images import Images, prepare, project_disk
from .machine import Machine, Settings, free_port

AGENT_PORT = 4999
# Seconds. A boot takes 12 s on an idle machine; with 15 processes on 2 processors, 95 s were measured. A panic or an
# exit of qemu is noticed at once.
BOOT_TIMEOUT = 240
READY = "guest: agent ready"
DEAD = ("Kernel panic", "guest: cannot mount")
ENVIRONMENT = {
    "PATH": "/project/.wheel/bin:/opt/site/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8", "HOME": "/root", "LVP_IN_GUEST": "1",
}  # fmt: skip


class GuestError(Exception):
    """The guest did not boot, hung or crashed; the message ends with the last lines of its console."""


@dataclass(frozen=True)
class Result:
    """The exit status of a command in the guest (negative: the signal that killed it) and its whole output."""

    status: int
    output: str


class Guest:
    """A virtual machine with the project on it; `with Guest() as guest: guest.boot(); guest.sh("vgs")`.

    :param images: from `prepare()`, which is called if they are not given
    :param wheel: the built project; without it the guest runs the checkout's sources, without entry points
    :param init: "plain" (udev and the agent only, boots faster) or "systemd"
    :param cache: qemu's cache mode. In every mode, writes that reached qemu survive `power_cut()`, in this machine's
        page cache or on its disk. Only dirty pages in the guest's own page cache are lost.
    :param user_mode: without KVM, run user-mode Linux instead of emulating a processor, if it works here. Programs in
        it run at this machine's speed, but LVM, which forks much, takes twice as long as emulated.
    :param ports: ports of the guest that this machine reaches through `guest.port(number)`
    """

    def __init__(
        self, images: Images | None = None, *, wheel: Path | None = None, init: str = "plain", cache: str = "unsafe",
        ports: Iterable[int] | dict[int, int] = (), drives: Iterable[Drive] = TEST_DRIVES, memory: int = 3072,
        user_mode: bool = False,
    ) -> None:  # fmt: skip
        self._images = images or prepare()
        self._wheel = wheel
        self._drives = tuple(drives)
        self._ports = dict.fromkeys(ports, 0) | (ports if isinstance(ports, dict) else {}) | {AGENT_PORT: 0}
        self._options = {"init": init, "cache": cache, "memory": memory, "user_mode": user_mode}
        self._machine: Machine | None = None
        self._boots = 0

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="lvp-guest-"))
        try:
            root, project = self.directory / "root.raw", self.directory / "project.raw"
            _copy_sparse(self._images.root, root)
            project_disk(project, self._wheel)
            # The initramfs expects this order: vda, vdb, vdc.
            system = [(Drive("root", 6 * GIB), root), (Drive("site", 2 * GIB, read_only=True), self._images.site),
                      (Drive("project", 2 * GIB), project)]  # fmt: skip
            self._files = system + [(drive, create(drive, self.directory)) for drive in self._drives]
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.power_cut()
        shutil.rmtree(self.directory, ignore_errors=True)

    def boot(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Power on and wait until the agent answers."""
        self.power_on()
        self.wait_ready(timeout)

    def power_on(self) -> None:
        """Start qemu with the same disks as before."""
        if self._machine:
            raise GuestError("the guest is already running")
        self._boots += 1
        self._here = {there: here or free_port() for there, here in self._ports.items()}
        settings = Settings(self._images, self.directory, self._files, ports=self._here, **self._options)  # type: ignore[arg-type]
        self._machine = Machine(settings, self.directory / f"console-{self._boots}.log")

    def wait_ready(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Wait for the agent; raise on a panic, if qemu exits, or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while READY not in (console := self.console()):
            if any(mark in console for mark in DEAD):
                raise self._error("the guest's kernel failed to boot")
            if not self._machine or self._machine.ended():
                raise self._error("qemu exited before the guest was ready")
            if time.monotonic() > deadline:
                raise self._error(f"the guest was not ready within {timeout:.0f} s")
            time.sleep(0.05)
        agent.request(self.port(AGENT_PORT), 30, op="ping")

    def power_cut(self) -> None:
        """Kill qemu like a power failure; `boot()` starts the guest again with the same disks."""
        if self._machine:
            self._machine.kill()
            self._machine = None

    def power_off(self, timeout: float = 90) -> None:
        """Shut down cleanly (systemd stops the services; the plain init only syncs)."""
        command = "systemctl poweroff" if self._options["init"] == "systemd" else "sync; systemctl poweroff -ff"
        self.start(["sh", "-c", command], "/dev/null")
        if self._machine:
            self._machine.wait(timeout)
            self._machine = None

    def port(self, number: int) -> int:
        """Return the loopback port of this machine that is forwarded to the guest's port; a boot may change it."""
        return self._here[number]

    def console(self) -> str:
        """Return the console's output since the last power on."""
        try:
            return (self.directory / f"console-{self._boots}.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def run(
        self, argv: list[str], *, env: dict[str, str] | None = None, cwd: str = "/project",
        sink: Callable[[bytes], object] | None = None, silence: float = 240, total: float = 1200,
    ) -> Result:  # fmt: skip
        """Run a command as root; `sink` gets the output (both streams) as it arrives.

        :param silence: seconds without output after which the guest counts as hung
        :param total: seconds the command may take
        """
        output = bytearray()
        fields: dict[str, object] = {"argv": argv, "env": ENVIRONMENT | (env or {}), "cwd": cwd}

        def take(piece: bytes) -> None:
            output.extend(piece)
            if sink:
                sink(piece)

        try:
            status = agent.run(self.port(AGENT_PORT), fields, take, silence, total)
        except (agent.AgentError, OSError) as error:
            raise self._error(f"{shlex.join(argv)}: {error}") from error
        return Result(status, output.decode(errors="replace"))

    def sh(self, script: str, **options: float) -> str:
        """Run a shell script and return its output; raise if its status is not 0."""
        result = self.run(["sh", "-ec", script], **options)  # type: ignore[arg-type]
        if result.status:
            raise GuestError(f"status {result.status} from: {script}\n{result.output}")
        return result.output

    def start(self, argv: list[str], log: str) -> int:
        """Start a command in the background, with its output in the guest's file `log`; return its process id."""
        inner = f"echo $$; exec {shlex.join(argv)} > {shlex.quote(log)} 2>&1 < /dev/null"
        return int(self.sh(f"setsid sh -c {shlex.quote(inner)} &"))

    def put(self, content: bytes | Path, path: str, mode: int = 0o644) -> None:
        """Write a file in the guest."""
        data = content.read_bytes() if isinstance(content, Path) else content
        agent.request(self.port(AGENT_PORT), 120, data, op="put", path=path, mode=mode, size=len(data))

    def get(self, path: str) -> bytes:
        """Read a file of the guest."""
        return agent.fetch(self.port(AGENT_PORT), 120, path)

    def _error(self, message: str) -> GuestError:
        qemu = (self.directory / "qemu.log").read_text(errors="replace")[-1000:]
        last = "\n".join(self.console().splitlines()[-40:])
        return GuestError(f"{message}\n{qemu}--- the last lines of the guest's console:\n{last}")


def _copy_sparse(source: Path, target: Path) -> None:
    """Copy the base image. The guest keeps its copy over power cuts."""
    subprocess.run(["cp", "--sparse=auto", "--reflink=auto", str(source), str(target)], check=True)
