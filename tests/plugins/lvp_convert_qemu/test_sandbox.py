"""What qemu-img cannot do in its sandbox, tried with images that were never inspected; and hosts that lack a layer."""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from lvp_convert_qemu import QemuConverter, QemuSettings, commands
from provisioner.contracts import MIB, BackEndContext, ByteSize, Device, sandbox
from provisioner.contracts.errors import ConvertError
from provisioner.contracts.testing import FileView

pytestmark = pytest.mark.slow  # a sandboxed process for each test

SECRET = b"of the host only" * 4096


@contextmanager
def opened(path, flags=os.O_RDWR):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def run(argv, *fds):
    return subprocess.run([str(word) for word in argv], capture_output=True, text=True, pass_fds=fds, check=False)


def trusting(fd, device_fd):
    """A conversion that believes the image: it follows whatever file or server that names."""
    target = f"driver=raw,file.driver=file,file.filename=/proc/self/fd/{device_fd}"
    return ["convert", "-n", "-f", "qcow2", "--target-image-opts", f"/proc/self/fd/{fd}", target]


def image_reaching_for(tmp_path, kind, port):
    """A qcow2 image that reads a file of the host or asks a server of it."""
    secret, image = tmp_path / "secret", tmp_path / "image"
    secret.write_bytes(SECRET)
    file = {"driver": "raw", "file.driver": "file", "file.filename": str(secret)}
    server = {"server.type": "inet", "server.host": "127.0.0.1", "server.port": str(port)}
    backing = {
        "backing file": str(secret),
        "json file": "json:" + json.dumps(file),
        "json server": "json:" + json.dumps({"driver": "nbd", **server}),
        "server": f"nbd://127.0.0.1:{port}/x",
    }.get(kind)
    options = ["-b", backing, "-F", "nbd" if kind == "json server" else "raw"]
    if backing is None:
        options = ["-o", f"data_file={secret},data_file_raw=on"]
    made = run(["qemu-img", "create", "-u", "-f", "qcow2", *options, image, "64k"])
    assert made.returncode == 0, made.stderr
    secret.write_bytes(SECRET)  # as its own data file it had been emptied
    return image


@pytest.mark.parametrize("sandboxed", [False, True])
@pytest.mark.parametrize("kind", ["backing file", "json file", "data file"])
def test_host_file_never_reaches_a_volume(tmp_path, kind, sandboxed):
    image, device = image_reaching_for(tmp_path, kind, 1), tmp_path / "device"
    device.write_bytes(bytes(MIB))
    with opened(image) as fd, opened(device) as device_fd:
        bare = commands.sandboxed(QemuSettings(), [fd], [device_fd], mode="required") if sandboxed else ["qemu-img"]
        done = run([*bare, *trusting(fd, device_fd)], fd, device_fd)
    held = device.read_bytes()
    if sandboxed:
        assert done.returncode != 0
        assert "Permission denied" in done.stderr
        assert not any(held)
    else:  # or the image would prove nothing
        assert held.startswith(SECRET)


@pytest.mark.parametrize("sandboxed", [False, True])
@pytest.mark.parametrize("kind", ["server", "json server"])
def test_no_server_is_contacted(tmp_path, kind, sandboxed):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        image, device = image_reaching_for(tmp_path, kind, server.getsockname()[1]), tmp_path / "device"
        device.write_bytes(bytes(MIB))
        with opened(image) as fd, opened(device) as device_fd:
            bare = commands.sandboxed(QemuSettings(), [fd], [device_fd], mode="required") if sandboxed else ["qemu-img"]
            process = subprocess.Popen(
                [*bare, *trusting(fd, device_fd)], stderr=subprocess.PIPE, pass_fds=(fd, device_fd)
            )
            with process:
                if sandboxed:
                    assert b"Permission denied" in process.communicate()[1]
                    with pytest.raises(BlockingIOError):
                        server.accept()
                else:
                    server.settimeout(30)
                    server.accept()[0].close()
                    assert process.communicate()[1]


LOOK = """
import ctypes, errno, os, socket, sys
def refused(what, *arguments):
    try:
        what(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"
libc = ctypes.CDLL(None, use_errno=True)
effective = ctypes.create_string_buffer(24)
libc.capget(b"\\x22\\x05\\x08\\x20\\0\\0\\0\\0", effective)
uring = (libc.syscall(425, 8, ctypes.create_string_buffer(120)), errno.errorcode[ctypes.get_errno()])
own = os.fstat(int(sys.argv[1])).st_ino
print([
    libc.prctl(39, 0, 0, 0, 0), effective.raw.hex(), uring, os.environ["MALLOC_ARENA_MAX"],
    refused(socket.socket, socket.AF_UNIX), refused(socket.socket, socket.AF_INET), refused(socket.socket, 16),
    refused(open, "/etc/passwd"), refused(os.listdir, "/"), refused(open, "/usr/share/new", "w"),
    refused(open, f"/proc/self/fd/{sys.argv[1]}"), refused(open, f"/proc/self/fd/{sys.argv[1]}", "r+"),
    refused(os.mkdir, sys.argv[2] + "/new"), refused(os.unlink, sys.argv[2] + "/image"),
    refused(os.kill, os.getppid(), 0),
])
try:
    bytearray(1 << 30)
except MemoryError:
    print("bounded")
"""


def test_privileges_that_remain(tmp_path):
    """Seen by a program in its place: no privileges but one, no sockets, no files, no new ones, a bound on memory."""
    image = tmp_path / "image"
    image.touch()
    settings = QemuSettings(path=os.path.realpath(sys.executable), memory_limit=ByteSize(512 * MIB))
    with opened(image) as fd:
        done = run([*commands.sandboxed(settings, [fd], mode="required"), "-I", "-S", "-c", LOOK, fd, tmp_path], fd)
    assert done.returncode == 0, done.stderr
    found, bounded = done.stdout.splitlines()
    only_dac_override = (b"\2\0\0\0" * 2 + bytes(16)).hex() if os.geteuid() == 0 else bytes(24).hex()
    assert found == str(
        [
            1, only_dac_override, (-1, "ENOSYS"), "2",
            "EACCES", "EACCES", "EACCES",
            "EACCES", "EACCES", "EACCES",
            "allowed", "EACCES",
            "EACCES", "EACCES",
            "EPERM",
        ]
    )  # fmt: skip
    assert bounded == "bounded"


# --- hosts that lack a layer

WITHOUT_LANDLOCK = """
import os, sys
from provisioner.contracts import sandbox
machine = os.uname().machine
sandbox._CALLS = {machine: (sandbox._CALLS[machine][0], 445, 444)}
sandbox._refuse_sockets()
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture
def without_landlock(tmp_path, monkeypatch):
    """A kernel that does not know Landlock's calls: a filter around the sandbox answers for it."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{WITHOUT_LANDLOCK}' \"$@\"\n")
    python.chmod(0o755)
    monkeypatch.setattr(sandbox, "sys", SimpleNamespace(executable=str(python)))


def converter(**settings):
    return QemuConverter(QemuSettings(**settings), BackEndContext("qemu-img", None))


async def convert(tmp_path, made):
    image, device = tmp_path / "image", tmp_path / "device"
    image.write_bytes(b"x" * MIB)
    device.write_bytes(bytes(MIB))
    with FileView(image, "raw", MIB) as view:
        await made.convert(view, Device(str(device), MIB, reads_zero=True), lambda _: None)
    return device.read_bytes() == image.read_bytes()


async def test_all_layers_available(tmp_path):
    made = converter()
    (finding,) = await made.diagnose()
    assert finding.ok
    with capture_logs() as said:
        assert await convert(tmp_path, made)
    assert said == []


async def test_missing_layer_logged_once_and_by_doctor(tmp_path, without_landlock):
    made = converter()
    (finding,) = await made.diagnose()
    assert not finding.ok
    assert "files: the kernel has no Landlock" in finding.what
    assert "landlock" in finding.fix
    with capture_logs() as said:
        assert await convert(tmp_path, made)
        assert await convert(tmp_path, made)
    (line,) = said
    assert (line["log_level"], line["layer"].partition(":")[0]) == ("warning", "files")


async def test_required_sandbox_missing(tmp_path, without_landlock):
    with pytest.raises(ConvertError, match="cannot confine its files"):
        await convert(tmp_path, converter(sandbox="required"))
    assert not any((tmp_path / "device").read_bytes())
