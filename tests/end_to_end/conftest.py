"""Fixtures: real images of every kind, a server for them, and daemons that end with the test."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.daemon import Daemon, plain_config
from tests.servers.images import image_server

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20
SIZE = 48 * MIB


@dataclass(frozen=True)
class Image:
    """An image; ``raw`` has the content that its volume must have."""

    file: Path
    kind: str
    raw: Path


def qemu_img(*args):
    return subprocess.run(["qemu-img", *map(str, args)], check=True, capture_output=True, text=True).stdout


def vouch(file):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.with_name(file.name + ".sha256").write_text(f"{digest}  {file.name}\n")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Create images; return the valid ones by name. Each has a checksum file."""
    root = tmp_path_factory.mktemp("images")
    noise = random.Random(7)
    sparse, full = root / "sparse.raw", root / "full.raw"
    with sparse.open("wb") as file:
        file.truncate(SIZE)
        for offset in (0, 7 * MIB + 512, 20 * MIB, SIZE - 4096):
            file.seek(offset)
            file.write(noise.randbytes(4096 if offset else 3 * MIB))
    full.write_bytes(noise.randbytes(SIZE))
    made = {"sparse.raw": Image(sparse, "raw", sparse), "full.raw": Image(full, "raw", full)}
    for name, source, options in (
        ("zlib.qcow2", sparse, ["-c"]),
        ("zstd.qcow2", sparse, ["-c", "-o", "compression_type=zstd"]),
        ("plain.qcow2", full, []),
    ):
        qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, source, root / name)
        made[name] = Image(root / name, "qcow2", source)
    for image in made.values():
        vouch(image.file)
    _make_bad_ones(root)
    return made


def _make_bad_ones(root):
    (root / "wrong.qcow2").write_bytes((root / "zlib.qcow2").read_bytes())
    (root / "wrong.qcow2.sha256").write_text(f"{64 * '0'}  wrong.qcow2\n")
    qemu_img("create", "-f", "qcow2", root / "large.qcow2", "2G")
    (root / "text.qcow2").write_text("<html>not found</html>\n" * 1000)
    (root / "disguised.raw").write_bytes((root / "zlib.qcow2").read_bytes())
    (root / "cut.qcow2").write_bytes((root / "plain.qcow2").read_bytes()[: SIZE // 2])
    for name in ("large.qcow2", "text.qcow2", "disguised.raw", "cut.qcow2"):
        vouch(root / name)


@pytest.fixture
def server(images):
    root = next(iter(images.values())).file.parent
    with image_server(root) as running:
        yield running


@pytest.fixture
def make_daemon(tmp_path):
    """Return a function that makes daemons. They end with the test, and their logs must have no traceback."""
    made = []

    def make(name="d", **tables):
        folder = tmp_path / name
        made.append(Daemon(folder, plain_config(folder, **tables)))
        return made[-1]

    yield make
    for daemon in made:
        if daemon.process is not None and not daemon.ended_by_test:
            assert daemon.process.poll() in {None, 0}, daemon.state()
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
        for number in range(1, daemon.starts + 1):
            assert "Traceback" not in (daemon.folder / f"log-{number}").read_text()


@pytest.fixture
def daemon(make_daemon):
    return make_daemon().start()


def same(image, volume):
    """Check with qemu-img and byte by byte that the volume has the image's content followed by zeros."""
    qemu_img("compare", "-f", image.kind, "-F", "raw", image.file, volume)
    size = image.raw.stat().st_size
    subprocess.run(["cmp", f"--bytes={size}", image.raw, volume], check=True)
    with volume.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        assert end == 2**30
        for start in _data_from(file.fileno(), size, end):
            assert not any(os.pread(file.fileno(), MIB, start)), start
    return True


def _data_from(fd, start, end):
    """Yield offsets, a MiB apart, of the data (not the holes) from ``start`` on."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:  # only a hole is left
            return
        yield start
        start += MIB
