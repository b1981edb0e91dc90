"""Raw images as runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvp_convert_native.raw import raw_runs
from lvp_convert_native.runs import PAGE, RUN_BYTES


@st.composite
def extents(draw):
    cuts = sorted(draw(st.sets(st.integers(1, 6 * RUN_BYTES), min_size=1, max_size=8)))
    return [(start, stop, draw(st.booleans())) for start, stop in zip([0, *cuts], cuts, strict=False)], cuts[-1]


@given(extents())
def test_runs_cover_disk_once_in_pages(case):
    given_extents, size = case
    runs = list(raw_runs(given_extents, size))
    assert [run.guest for run in runs[1:]] == [run.guest + run.length for run in runs[:-1]]
    assert (runs[0].guest, runs[-1].guest + runs[-1].length) == (0, size)
    for run in runs:
        assert run.guest % PAGE == 0
        if run.is_zero:
            end = run.guest + run.length
            assert not any(data and start < end and stop > run.guest for start, stop, data in given_extents)
        else:
            assert run.host == run.low == run.guest
            assert run.need == run.guest + run.length
            assert run.guest // RUN_BYTES == (run.need - 1) // RUN_BYTES


@pytest.mark.parametrize(("extent", "zeros"), [((0, 10 * RUN_BYTES, False), 1), ((0, 10 * RUN_BYTES, True), 0)])
def test_a_hole_is_one_run(extent, zeros):
    assert sum(run.is_zero for run in raw_runs([extent], extent[1])) == zeros
