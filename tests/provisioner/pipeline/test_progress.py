"""Progress: the stage furthest behind, its bytes, and a percent that never falls."""

from hypothesis import given
from hypothesis import strategies as st

from provisioner.pipeline.progress import Progress, Stage

STAGES = list(Stage)[1:]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_snapshot_of_a_waiting_job():
    shot = Progress().snapshot()
    assert (shot.stage, shot.percent, shot.bytes_total, shot.eta_sec) == (Stage.QUEUED, 0.0, 0, None)


def test_snapshot_of_the_running_stage():
    clock = Clock()
    progress, there = Progress(clock), [0]
    progress.begin(Stage.DOWNLOADING, 1000, lambda: there[0])
    assert progress.snapshot().eta_sec is None
    clock.now, there[0] = 10.0, 250
    shot = progress.snapshot()
    assert (shot.bytes_processed, shot.bytes_total, shot.eta_sec) == (250, 1000, 30.0)
    assert 1 < shot.percent < 50


def test_snapshot_of_overlapping_stages():
    progress = Progress()
    progress.begin(Stage.DOWNLOADING, 100)
    progress.begin(Stage.CONVERTING, 100)
    progress.advance(Stage.CONVERTING, 90)
    assert progress.snapshot().stage is Stage.DOWNLOADING
    progress.end(Stage.DOWNLOADING)
    shot = progress.snapshot()
    assert (shot.stage, shot.bytes_processed) == (Stage.CONVERTING, 90)


def test_percent_of_a_stage_without_length():
    progress = Progress()
    progress.begin(Stage.DOWNLOADING, 0, lambda: 12345)
    shot = progress.snapshot()
    assert (shot.percent, shot.bytes_processed, shot.bytes_total, shot.eta_sec) == (1.0, 12345, 0, None)


def test_percent_after_all_stages():
    progress = Progress()
    for stage in STAGES:
        progress.begin(stage)
        progress.end(stage)
    assert progress.snapshot().percent == 100.0
    assert set(progress.timings()) == {str(stage) for stage in STAGES}


@given(st.lists(st.tuples(st.sampled_from(["begin", "advance", "end"]), st.sampled_from(STAGES), st.integers(0, 200))))
def test_percent_never_falls(steps):
    """In whatever order stages begin, advance and end, even repeatedly."""
    progress, last = Progress(Clock()), 0.0
    for what, stage, number in steps:
        if what == "begin":
            progress.begin(stage, 100)
        elif progress.has_begun(stage):
            progress.advance(stage, number) if what == "advance" else progress.end(stage)
        shot = progress.snapshot()
        assert last <= shot.percent <= 100
        last = shot.percent


def test_advance_out_of_order():
    """Threads report out of order."""
    progress = Progress()
    progress.begin(Stage.CONVERTING, 100)
    progress.advance(Stage.CONVERTING, 60)
    progress.advance(Stage.CONVERTING, 40)
    assert progress.snapshot().bytes_processed == 60


def test_on_stage_is_called_for_each_stage():
    told = []
    progress = Progress(on_stage=told.append)
    for stage in (Stage.DOWNLOADING, Stage.VERIFYING):
        progress.begin(stage)
        progress.end(stage)
    assert told[0] is Stage.DOWNLOADING
    assert told[-1] is Stage.VERIFYING


def test_changed_at_moves_with_progress_only():
    wall, there = Clock(), [0]
    progress = Progress(wall_clock=wall)
    assert progress.snapshot().changed_at == 0.0
    wall.now = 1.0
    progress.begin(Stage.DOWNLOADING, 1000, lambda: there[0])
    wall.now = 2.0
    there[0] = 10
    assert progress.snapshot().changed_at == 2.0
    wall.now = 3.0
    assert progress.snapshot().changed_at == 2.0
    progress.end(Stage.DOWNLOADING)
    assert progress.snapshot().changed_at == 3.0
    progress.begin(Stage.CONVERTING, 1000)
    for wall.now, done in ((4.0, 5), (5.0, 5), (6.0, 4)):
        progress.advance(Stage.CONVERTING, done)
    assert progress.snapshot().changed_at == 4.0


def test_intervals_by_the_wall_clock():
    clock = Clock()
    progress = Progress(clock, wall_clock=lambda: 1000.0 + clock.now)
    clock.now = 1.0
    progress.begin(Stage.DOWNLOADING)
    clock.now = 2.0
    progress.begin(Stage.CONVERTING)
    clock.now = 5.0
    progress.end(Stage.DOWNLOADING)
    clock.now = 7.0
    assert progress.intervals() == {"downloading": (1001.0, 1005.0), "converting": (1002.0, 1007.0)}
