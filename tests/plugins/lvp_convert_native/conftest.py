"""Images of all kinds, made by QEMU's own tools, and devices to put them on."""

import random
import subprocess
from pathlib import Path

import pytest

from lvp_convert_native import NativeConverter, NativeSettings
from provisioner.contracts import BackEndContext, Device
from provisioner.contracts.testing import FileView


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


class Bench:
    """A folder with images, and the native converter beside QEMU's."""

    def __init__(self, folder):
        self.folder = folder
        self.converter = NativeConverter(NativeSettings(), BackEndContext("native", folder))

    def run(self, *command):
        return run(*command)

    def disk(self, size, seed=1):
        """A raw disk: packable and random data, holes, zeros written out."""
        path, rng = self.folder / f"disk-{size}-{seed}.raw", random.Random(seed)
        with path.open("wb") as file:
            file.truncate(size)
            for at in range(0, size, 96 * 1024):
                length = min(rng.randrange(1, 96 * 1024), size - at)
                kinds = [rng.randbytes(length), bytes([rng.randrange(256)]) * length, bytes(length)]
                if rng.random() < 0.6:
                    file.seek(at)
                    file.write(rng.choice(kinds))
        return path

    def qcow2(self, source, *options, pack=False):
        path = self.folder / f"{source.stem}{'-packed' if pack else ''}-{'-'.join(options)}.qcow2"
        flags = (["-c"] if pack else []) + [part for option in options for part in ("-o", option)]
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *flags, source, path)
        return path

    def as_qemu_reads_it(self, image, kind="qcow2"):
        out = self.folder / "qemu.raw"
        run("qemu-img", "convert", "-f", kind, "-O", "raw", image, out)
        return out.read_bytes()

    async def convert(self, image, size, kind="qcow2", *, stale=False, path=None):
        """What the native converter makes of an image."""
        out = path or self.folder / "native.raw"
        if path is None:
            out.write_bytes((b"\xa5" if stale else b"\0") * size)
        with FileView(image, kind, size) as view:
            await self.converter.convert(view, Device(str(out), size, reads_zero=not stale), lambda _: None)
        with out.open("rb") as file:
            return file.read(size)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def loop_device(tmp_path):
    """``loop_device(size, sector)``: a block device over a file full of another's bytes."""
    made = []

    def make(size, sector):
        backing = tmp_path / f"backing-{len(made)}"
        backing.write_bytes(b"\xa5" * size)
        made.append(Path(run("losetup", "--find", "--show", "--sector-size", sector, backing).strip()))
        return made[-1]

    yield make
    for device in made:
        run("losetup", "--detach", device)
