"""Conversion while the image arrives: the work follows the bytes."""

import random
import struct

import pytest
import trio

from lvp_convert_native import NativeConverter, NativeSettings
from provisioner.contracts import MIB, BackEndContext
from provisioner.contracts.errors import RemoteUnavailableError
from provisioner.contracts.testing import ArrivingView
from provisioner.contracts.testing.converter_suite import make_device

CLUSTER = 65536


@pytest.fixture
def one_thread(tmp_path):
    """Where it waits, everything before is done."""
    return NativeConverter(NativeSettings(threads=1), BackEndContext("native", tmp_path))


def with_its_tables_last(data):
    """A qcow2 image whose L2 table comes after all of its data, as some tools write them."""
    clusters = len(data) // CLUSTER
    l2 = 4 + clusters
    v2 = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, len(data), 0, 1, 3 * CLUSTER, CLUSTER, 1, 0, 0)
    header = v2 + struct.pack(">QQQIIQ", 0, 0, 0, 4, 112, 0)
    table = struct.pack(f">{clusters}Q", *((4 + i) * CLUSTER for i in reversed(range(clusters))))
    parts = [header, struct.pack(">Q", 2 * CLUSTER), b"", struct.pack(">Q", l2 * CLUSTER)]
    body = b"".join(part.ljust(CLUSTER, b"\0") for part in parts)
    return body + data + table.ljust(CLUSTER, b"\0")


async def test_late_table(bench, tmp_path, one_thread):
    data = b"".join(bytes([1 + i]) * CLUSTER for i in range(40))
    content = with_its_tables_last(data)
    (tmp_path / "late.qcow2").write_bytes(content)
    device = make_device(tmp_path, len(data))
    with ArrivingView(tmp_path / "arriving", content, "qcow2", len(data)) as view:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one_thread.convert, view, device, lambda _: None)
            view.feed(4 * CLUSTER)
            await view.starved()
            assert view.asked[-1] == (len(content) - CLUSTER, len(content))
            view.feed()
    turned = b"".join(data[at : at + CLUSTER] for at in reversed(range(0, len(data), CLUSTER)))
    assert (tmp_path / "device").read_bytes() == turned == bench.as_qemu_reads_it(tmp_path / "late.qcow2")


async def test_late_table_is_fetched_ahead(tmp_path, one_thread):
    """Half of the data is on the device before its table has come by itself."""
    data = b"".join(bytes([1 + i]) * CLUSTER for i in range(128))
    content = with_its_tables_last(data)
    device = make_device(tmp_path, len(data))
    done = [0]
    with ArrivingView(tmp_path / "arriving", content, "qcow2", len(data)) as view:
        view.fetches_ahead = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one_thread.convert, view, device, done.append)
            await view.starved()
            view.feed(4 * CLUSTER)
            await view.starved()
            view.feed(64 * CLUSTER)
            await view.starved()
            assert done[-1] == len(data) // 2
            assert view.fetched[-1] == (len(content) - CLUSTER, len(content))
            view.feed()
    turned = b"".join(data[at : at + CLUSTER] for at in reversed(range(0, len(data), CLUSTER)))
    assert (tmp_path / "device").read_bytes() == turned


@pytest.mark.parametrize("pack", [False, True])
async def test_arrived_bytes_are_written(bench, tmp_path, one_thread, pack):
    """Half of the file is half of the disk, but for the run under way."""
    size = 32 * MIB
    disk = tmp_path / "disk.raw"
    rng = random.Random(1)
    disk.write_bytes(b"".join(rng.randbytes(2048) + bytes([i % 251 + 1]) * 2048 for i in range(size // 4096)))
    image = bench.qcow2(disk, pack=pack)
    done = [0]
    with ArrivingView(tmp_path / "arriving", image.read_bytes(), "qcow2", size) as view:
        device = make_device(tmp_path, size)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one_thread.convert, view, device, done.append)
            view.feed(view.size // 2)
            await view.starved()
            while view.asked[-1][1] <= view.available:
                await view.starved()
            assert done[-1] >= size // 2 - 4 * MIB
            view.feed()
    assert (tmp_path / "device").read_bytes() == disk.read_bytes()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
async def test_failed_download_fails_conversion(bench, tmp_path, kind):
    """With every thread waiting, the one error of the download comes out plainly, not as a group."""
    disk = bench.disk(16 * MIB)
    content = (disk if kind == "raw" else bench.qcow2(disk)).read_bytes()
    errors = []

    async def convert():
        try:
            await bench.converter.convert(view, make_device(tmp_path, 16 * MIB), lambda _: None)
        except RemoteUnavailableError as error:
            errors.append(error)

    with ArrivingView(tmp_path / "arriving", content, kind, 16 * MIB) as view:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(convert)
            view.feed(len(content) // 3)
            await view.starved()
            view.fail(RemoteUnavailableError("the transfer broke"))
    assert len(errors) == 1
