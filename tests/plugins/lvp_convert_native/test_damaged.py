"""A cached image that rots: the converter finds it in whatever it reads, or never read the wrong bytes."""

import pytest

from provisioner.contracts import MIB, Device
from provisioner.contracts.errors import DamagedImageError
from provisioner.contracts.testing import FileView
from provisioner.download.chunk_sums import CHUNK, ChunkChecker, ChunkSummer

SIZE = 6 * MIB


class CheckedView(FileView):
    """A view that compares what is read with ``sums``, as the cache's does."""

    def __init__(self, path, kind, virtual_size, sums):
        super().__init__(path, kind, virtual_size)
        self._sums = sums

    def __enter__(self):
        super().__enter__()
        checker = ChunkChecker(self.fd, self.size, self._sums)
        self.check, self.check_zeros, self.check_all = checker.check, checker.check_zeros, checker.check_all
        return self


def sums_of(path):
    summer = ChunkSummer()
    summer.feed(memoryview(path.read_bytes()))
    return summer.finish()


@pytest.fixture(params=["raw", "plain", "zlib", "zstd", "small-clusters"])
def image(bench, request):
    disk = bench.disk(SIZE)
    if request.param == "raw":
        return disk, "raw"
    options = {"zstd": ["compression_type=zstd"], "small-clusters": ["cluster_size=4096"]}.get(request.param, [])
    return bench.qcow2(disk, *options, pack=request.param in {"zlib", "zstd"}), "qcow2"


async def convert(bench, path, kind, sums):
    out = bench.folder / "native.raw"
    out.write_bytes(b"\xa5" * SIZE)
    with CheckedView(path, kind, SIZE, sums) as view:
        await bench.converter.convert(view, Device(str(out), SIZE, reads_zero=False), lambda _: None)
    return out.read_bytes()


async def test_intact_image(bench, image):
    path, kind = image
    assert await convert(bench, path, kind, sums_of(path)) == bench.as_qemu_reads_it(path, kind)


async def test_each_chunk_damaged(bench, image):
    """Either the damage is found, or the device holds what the right image did."""
    path, kind = image
    sums, right, found = sums_of(path), bench.as_qemu_reads_it(path, kind), 0
    original = path.read_bytes()
    for at in range(0, len(original), CHUNK):
        middle = min(at + CHUNK // 2, len(original) - 1)
        with path.open("r+b", buffering=0) as file:
            file.seek(middle)
            file.write(bytes([original[middle] ^ 0xFF]))
            try:
                assert await convert(bench, path, kind, sums) == right
            except DamagedImageError:
                found += 1
            file.seek(middle)
            file.write(original[middle : middle + 1])
    assert found >= len(sums) // 4 - 1  # qcow2 has a chunk of refcounts, which are not read


async def test_a_hole_where_data_was(bench):
    path = bench.folder / "disk.raw"
    path.write_bytes(b"\x5a" * SIZE)
    sums = sums_of(path)
    bench.run("fallocate", "--punch-hole", "--offset", 2 * MIB, "--length", MIB, path)
    with pytest.raises(DamagedImageError):
        await convert(bench, path, "raw", sums)
