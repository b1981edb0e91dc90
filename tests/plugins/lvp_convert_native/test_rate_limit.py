"""What a conversion accounts for, and that waiting for its turn does not outlast a cancel."""

import os

import msgspec
import pytest
import trio

from lvp_convert_native import NativeConverter, NativeSettings
from provisioner.contracts import MIB, BackEndContext, ByteSize
from provisioner.contracts.rate_limit import RateLimiter
from provisioner.contracts.testing import FileView
from provisioner.contracts.testing.converter_suite import make_device

HOLE = 8 * MIB


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(os.urandom(8 * MIB))
        file.seek(HOLE, os.SEEK_CUR)
        file.write(os.urandom(4 * MIB))
    return path


def converter(folder, rate):
    return NativeConverter(NativeSettings(threads=2, rate_limit=ByteSize(rate)), BackEndContext("native", folder))


async def convert(made, image, folder, report=lambda _done: None):
    with FileView(image) as view:
        await made.convert(view, make_device(folder, view.size), report)


async def test_holes_do_not_count(tmp_path, image, monkeypatch):
    booked = []
    monkeypatch.setattr(RateLimiter, "reserve", lambda _rate_limiter, size: booked.append(size) or 0.0)
    await convert(converter(tmp_path, 100 * MIB), image, tmp_path)
    assert sum(booked) == 12 * MIB
    assert (tmp_path / "device").read_bytes() == image.read_bytes()


async def test_a_cancel_ends_the_wait(tmp_path, image, monkeypatch):
    waiting = trio.Event()
    token = trio.lowlevel.current_trio_token()
    monkeypatch.setattr(RateLimiter, "reserve", lambda _rate_limiter, _size: token.run_sync_soon(waiting.set) or 3600.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(convert, converter(tmp_path, MIB), image, tmp_path)
        await waiting.wait()
        nursery.cancel_scope.cancel()


def test_rate_limit_too_low_to_cancel():
    with pytest.raises(msgspec.ValidationError, match="at least 1MiB"):
        msgspec.convert({"rate_limit": 1024}, NativeSettings, dec_hook=lambda kind, value: kind(value))
