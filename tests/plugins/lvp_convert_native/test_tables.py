"""L2 tables as runs, without a file."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvp_convert_native.qcow2_header import Compression, Header
from lvp_convert_native.qcow2_tables import (
    COMPRESSED,
    Mapper,
    check_l1,
    compressed_span,
    entries,
    is_data,
    table_offset,
)
from lvp_convert_native.runs import PAGE, RUN_BYTES
from provisioner.contracts.errors import CorruptImageError

CLUSTER = 65536
COPIED = 1 << 63


def a_header(size=64 * CLUSTER, file_size=1000 * CLUSTER, bits=16, version=3):
    return Header(version, bits, size, CLUSTER, Compression.ZLIB, file_size)


def a_table(*given_entries, bits=16):
    return array("Q", [*given_entries] + [0] * ((1 << bits) // 8 - len(given_entries)))


def runs(*given_entries, streaming=False, **options):
    bits = options.get("bits", 16)
    return list(Mapper(a_header(**options), streaming).runs(0, a_table(*given_entries, bits=bits)))


def packed(at, sectors, bits=16):
    return COMPRESSED | (sectors - 1) << (62 - (bits - 8)) | at


def test_entries_are_big_endian():
    assert list(entries(bytes([0, 0, 0, 0, 0, 0, 1, 2]))) == [258]


def test_clusters_in_a_row_are_one_run():
    (data, zeros) = runs(*(COPIED | (5 + i) * CLUSTER for i in range(10)))
    assert (data.guest, data.length, data.host, data.need) == (0, 10 * CLUSTER, 5 * CLUSTER, 15 * CLUSTER)
    assert (zeros.guest, zeros.length, zeros.is_zero) == (10 * CLUSTER, 54 * CLUSTER, True)


def test_run_ends_at_multiple_of_maximum():
    per_run = RUN_BYTES // CLUSTER
    first, second, _ = runs(0, *((5 + i) * CLUSTER for i in range(40)))[1:]
    assert (first.length, second.guest) == ((per_run - 1) * CLUSTER, RUN_BYTES)


def test_zero_and_unallocated_clusters_are_zeros():
    (run,) = runs(0, 1, 7 * CLUSTER | 1, COPIED | 1)
    assert run.is_zero
    assert run.length == 64 * CLUSTER


def test_compressed_entry_bit_0_is_offset():
    entry = packed(CLUSTER + 1, 3)
    assert is_data(entry)
    assert compressed_span(entry, a_header()) == (CLUSTER + 1, CLUSTER + 3 * 512)


def test_compressed_span_ends_with_file():
    assert (
        compressed_span(packed(999 * CLUSTER, 128), a_header(file_size=999 * CLUSTER + 700))[1] == 999 * CLUSTER + 700
    )


def test_last_cluster_cut_off_at_disk_end():
    (run,) = runs(4 * CLUSTER, size=512, file_size=4 * CLUSTER + 512)
    assert (run.length, run.need) == (512, 4 * CLUSTER + 512)


def test_streaming_run_split_at_file_gap():
    table = (500 * CLUSTER, 501 * CLUSTER, 5 * CLUSTER, 6 * CLUSTER)
    assert [run.need for run in runs(*table, streaming=True)[:-1]] == [502 * CLUSTER, 7 * CLUSTER]
    assert len(runs(*table)) == 2


def test_clusters_smaller_than_a_page():
    first, zeros = runs(0, 0, 1024, bits=9, size=32768)
    assert (first.guest, first.length, list(first.entries[:4])) == (0, PAGE, [0, 0, 1024, 0])
    assert zeros.guest == PAGE


REFUSED = [
    ([5 * CLUSTER + 512], {}, "not the start of a cluster"),
    ([5 * CLUSTER, 5 * CLUSTER + 512], {}, "not the start of a cluster"),
    ([1000 * CLUSTER], {}, "truncated"),
    ([5 * CLUSTER, 1000 * CLUSTER], {}, "truncated"),
    ([(1 << 55) - CLUSTER], {}, "truncated"),
    ([packed(1000 * CLUSTER, 1)], {}, "outside the file"),
    ([packed(0, 1)], {}, "outside the file"),
    ([packed((1 << 54) - 1, 256)], {}, "outside the file"),
    ([1], {"version": 2}, "version 2"),
    ([CLUSTER] * 64, {"file_size": 8 * CLUSTER}, "same L2 table several times|more than once"),
    (
        [packed(CLUSTER, 1)] * 8192,
        {"file_size": 2 * CLUSTER, "size": 8192 * CLUSTER},
        "same L2 table several times|more than once",
    ),
]


@pytest.mark.parametrize(("table", "options", "words"), REFUSED)
def test_invalid_input(table, options, words):
    with pytest.raises(CorruptImageError, match=words):
        runs(*table, **options)


@pytest.mark.parametrize("entry", [512, CLUSTER + 512, 1000 * CLUSTER, 999 * CLUSTER + 512, 1 << 55])
def test_l2_table_must_be_a_cluster(entry):
    with pytest.raises(CorruptImageError, match="L1 entry 3"):
        table_offset(entry, 3, a_header())


def test_l1_table_repeating_an_l2_table():
    check_l1(array("Q", [CLUSTER] * 10 + [0] * 50), a_header(file_size=10 * CLUSTER))
    with pytest.raises(CorruptImageError, match="same L2 table several times"):
        check_l1(array("Q", [CLUSTER] * 11), a_header(file_size=10 * CLUSTER))


ENTRY = st.one_of(
    st.just(0),
    st.just(1),
    st.integers(1, 999).map(lambda n: n * CLUSTER | COPIED),
    st.integers(CLUSTER, 990 * CLUSTER).map(lambda at: packed(at, 9)),
)


@given(st.lists(ENTRY, min_size=1, max_size=200), st.booleans())
def test_runs_cover_table_and_keep_entries(table, streaming):
    size = 200 * CLUSTER - 512
    seen = {}
    at = 0
    for run in sorted(runs(*table, streaming=streaming, size=size), key=lambda run: run.guest):
        assert run.guest == at
        at += run.length
        for i in range(-(-run.length // CLUSTER)):
            entry = run.entries[i] if run.entries else 0 if run.is_zero else run.host + i * CLUSTER
            seen[run.guest // CLUSTER + i] = entry
    assert at == size
    for index, entry in enumerate(table):
        assert seen[index] & ~COPIED == (entry & ~COPIED if is_data(entry) else 0)
