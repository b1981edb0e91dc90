"""Damaged images end in one of our errors or in what QEMU reads: nothing else, never another exception."""

import subprocess
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioner.contracts import MIB
from provisioner.contracts.errors import ImageError

pytestmark = pytest.mark.slow  # hundreds of damaged images

SIZE = 3 * MIB
SMALL = 9  # clusters of 512 bytes put tables all over the file

BYTES = st.tuples(st.just("bytes"), st.floats(0, 1), st.binary(min_size=1, max_size=16))
HEADER = st.tuples(st.just("header"), st.integers(4, 111), st.integers(0, 255).map(lambda value: bytes([value])))
# An entry of some table: a real one moved elsewhere, its flags turned, or anything at all.
ENTRY = st.tuples(
    st.just("entry"),
    st.floats(0, 1),
    st.one_of(
        st.sampled_from([0, 1, 1 << 62, 1 << 63, 3 << 62]),
        st.integers(0, 2 * SIZE).map(lambda at: at & ~511 | 1 << 63),
        st.integers(0, 2 * SIZE).map(lambda at: at | 1 << 62),
        st.integers(0, 2**64 - 1),
    ).map(lambda entry: entry.to_bytes(8, "big")),
)
CUT = st.tuples(st.just("cut"), st.floats(0, 1), st.just(b""))


def damage(content, mutations):
    content = bytearray(content)
    for kind, where, data in mutations:
        at = where if kind == "header" else int(where * (len(content) - 1))
        if kind == "cut":
            del content[max(at, 4) :]
        else:
            at = at // 8 * 8 if kind == "entry" else at
            content[at : at + len(data)] = data
    return bytes(content)


@pytest.fixture(params=["plain-512", "plain-65536", "zlib-512", "zlib-65536", "zstd-65536"])
def image(bench, request):
    kind, cluster_size = request.param.split("-")
    options = [f"cluster_size={cluster_size}"] + (["compression_type=zstd"] if kind == "zstd" else [])
    return bench.qcow2(bench.disk(SIZE, 3), *options, pack=kind != "plain").read_bytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=st.lists(st.one_of(BYTES, HEADER, ENTRY, CUT), min_size=1, max_size=4))
def test_a_damaged_image(bench, image, mutations):
    path = bench.folder / "damaged.qcow2"
    path.write_bytes(damage(image, mutations))
    try:
        ours = trio.run(bench.convert, path, SIZE)
    except ImageError:
        return
    qemu = Path(bench.folder / "qemu.raw")
    command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, qemu]
    if subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0:
        assert ours == qemu.read_bytes()
