"""The pure parts: command lines, progress, and what complaints mean."""

import json

import pytest

from lvp_convert_qemu import commands
from lvp_convert_qemu.errors import as_error
from lvp_convert_qemu.settings import QemuSettings
from provisioner.contracts import ByteSize
from provisioner.contracts.errors import ConvertError, CorruptImageError, NoSpaceError, ToolError


@pytest.mark.parametrize("image_format", sorted(commands.FORMATS))
def test_every_source_layer_has_a_driver(image_format):
    node = json.loads(commands.source(7, image_format).removeprefix("json:"))
    assert node["driver"] == image_format
    assert node["file"] == {"driver": "file", "filename": "/proc/self/fd/7", "locking": "off"}


@pytest.mark.parametrize("reads_zero", [True, False])
def test_zeros_skipped_only_if_device_reads_zero(reads_zero):
    argv = commands.convert(QemuSettings(), 7, "qcow2", 8, is_block=True, reads_zero=reads_zero, direct=True)
    assert ("--target-is-zero" in argv) is reads_zero
    assert argv[-1] == "driver=raw,file.driver=host_device,file.filename=/proc/self/fd/8"


def test_rate_limit_is_passed_on():
    argv = commands.convert(
        QemuSettings(rate_limit=ByteSize(2**20)), 7, "qcow2", 8, is_block=True, reads_zero=False, direct=True
    )
    options = argv[argv.index("convert") :]
    assert options[options.index("-r") + 1] == "1048576"


def test_progress_from_split_output():
    for size in (1, 3, 7, 1000):
        done = []
        progress = commands.Progress(1000, done.append)
        text = b"    (0.00/100%)\r    (1.50/100%)\r    (1.00/100%)\r    (50.00/100%)\r    (100.00/100%)\r\n"
        moved = [progress.feed(text[at : at + size]) for at in range(0, len(text), size)]
        assert done == sorted(set(done))
        assert done[-1] == 1000
        assert moved.count(True) == len(done)


def test_progress_beyond_the_end():
    done = []
    progress = commands.Progress(1000, done.append)
    assert progress.feed(b"(250.00/100%)")
    assert not progress.advance(1000)
    assert done == [1000]


@pytest.mark.parametrize(
    ("status", "stderr", "kind", "words"),
    [
        (1, "qemu-img: error while writing at byte 8: No space left on device", NoSpaceError, "no space"),
        (1, "qemu-img: error while writing at byte 8: Input/output error", ConvertError, "byte 8: Input/output"),
        (1, "qemu-img: error while reading at byte 0: Input/output error", CorruptImageError, "byte 0"),
        (1, "qemu-img: Could not open 'json:{\"a\": {}}': L1 table is too large", CorruptImageError, "L1 table"),
        (1, "qemu-img: Cannot allocate memory", ConvertError, "memory_limit"),
        (-6, "GLib-ERROR: something", ConvertError, "memory_limit"),
        (-11, "", ConvertError, "SIGSEGV"),
        (None, "", ToolError, "started"),
    ],
)
def test_error_messages_of_qemu_img(status, stderr, kind, words):
    said = "qemu-img failed with signal SIGSEGV: no output on stderr" if status else "it could not be started"
    error = as_error(ToolError(said, tool="qemu-img", status=status, stderr=stderr))
    assert type(error) is kind
    assert words in error.message
    assert "json:" not in error.message
