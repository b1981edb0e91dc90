"""Progress of a job: bytes of the stage that is furthest behind, a percent that never falls, an ETA.

The caller passes the clock in. ``advance`` may be called from any thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Stage(StrEnum):
    """The stages of a job, in their order."""

    QUEUED = "queued"
    CHECKING_CACHE = "checking_cache"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    ALLOCATING = "allocating"
    CONVERTING = "converting"
    POPULATING = "populating"
    FINALIZING = "finalizing"


# The percent of a whole job at which each stage ends. Downloading and converting take the time.
_ENDS = {
    Stage.QUEUED: 0.0,
    Stage.CHECKING_CACHE: 1.0,
    Stage.DOWNLOADING: 50.0,
    Stage.VERIFYING: 52.0,
    Stage.ALLOCATING: 54.0,
    Stage.CONVERTING: 96.0,
    Stage.POPULATING: 98.0,
    Stage.FINALIZING: 100.0,
}
_ORDER = list(Stage)
# Seconds; a rate over less time than this is noise.
_MIN_ELAPSED = 0.3


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Progress at one moment: ``percent`` of the whole job, bytes of the stage; ``eta_sec`` is None while unknown.

    ``changed_at`` is the wall clock's time of the last change, 0 before the first. ``waiting_for`` is the last
    temporary error while a source is asked again.
    """

    stage: Stage
    percent: float
    bytes_processed: int
    bytes_total: int
    eta_sec: float | None
    cache_hit: bool | None = None
    changed_at: float = 0.0
    waiting_for: str | None = None


@dataclass(slots=True)
class _Activity:
    started: float
    total: int = 0
    probe: Callable[[], int] | None = None
    reported: int = 0
    ended: float | None = None

    @property
    def done(self) -> int:
        return self.probe() if self.probe is not None else self.reported


@dataclass(slots=True)
class Progress:
    """The progress of one job. Stages may overlap; the first one that has not ended is the one reported."""

    clock: Callable[[], float] = time.monotonic
    on_stage: Callable[[Stage], None] = lambda _stage: None
    cache_hit: bool | None = None  # None until known
    wall_clock: Callable[[], float] = time.time
    waiting_for: Callable[[], str | None] = lambda: None
    _changed_at: float = 0.0
    _probed: tuple[Stage, int] | None = None
    _running: dict[Stage, _Activity] = field(default_factory=dict)
    _percent: float = 0.0

    def begin(self, stage: Stage, total: int = 0, probe: Callable[[], int] | None = None) -> None:
        """Begin a stage of ``total`` bytes, 0 if that has no meaning or is not known.

        ``probe`` returns how many are done, for stages that do not call ``advance``.
        """
        self._running[stage] = _Activity(self.clock(), total, probe)
        self._changed_at = self.wall_clock()
        self.on_stage(self.stage)

    def restart(self) -> None:
        """Start over and discard the stages so far. The percent does not fall."""
        self._running.clear()
        self.waiting_for = lambda: None
        self.begin(Stage.CHECKING_CACHE)

    def advance(self, stage: Stage, done: int) -> None:
        """Record that ``done`` bytes of a stage are processed in total."""
        activity = self._running[stage]
        if done > activity.reported:
            activity.reported, self._changed_at = done, self.wall_clock()

    def end(self, stage: Stage) -> None:
        """End a stage."""
        activity = self._running[stage]
        activity.probe, activity.reported = None, max(activity.done, activity.total)
        activity.ended = self.clock()
        self._changed_at = self.wall_clock()
        self.on_stage(self.stage)

    def processed(self, stage: Stage) -> int:
        """Return the processed bytes of a stage, 0 if it has not begun."""
        return self._running[stage].done if stage in self._running else 0

    def has_begun(self, stage: Stage) -> bool:
        """Return whether the stage has begun."""
        return stage in self._running

    def ended(self, stage: Stage) -> bool:
        """Return whether the stage has begun and ended."""
        return stage in self._running and self._running[stage].ended is not None

    @property
    def stage(self) -> Stage:
        """Return the running stage that is furthest behind, or the last one begun if none runs."""
        open_stages = [stage for stage in _ORDER if stage in self._running and self._running[stage].ended is None]
        if open_stages:
            return open_stages[0]
        begun = [stage for stage in _ORDER if stage in self._running]
        return begun[-1] if begun else Stage.QUEUED

    def timings(self) -> dict[str, float]:
        """Return the seconds spent in each stage begun so far."""
        now = self.clock()
        return {
            stage.value: round((activity.ended or now) - activity.started, 3)
            for stage, activity in self._running.items()
        }

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return when each stage began and ended, in seconds since the epoch; one that runs ends now."""
        now, offset = self.clock(), self.wall_clock() - self.clock()
        return {
            stage.value: (offset + activity.started, offset + (activity.ended or now))
            for stage, activity in self._running.items()
        }

    def snapshot(self) -> Snapshot:
        """Return the current progress."""
        stage = self.stage
        activity = self._running.get(stage)
        if activity is None:
            return Snapshot(stage, 0.0, 0, 0, None, self.cache_hit, waiting_for=self.waiting_for())
        total, done = activity.total, activity.done
        if activity.probe is not None and self._probed != (stage, done):  # a probe cannot report when it moved
            self._probed, self._changed_at = (stage, done), self.wall_clock()
        fraction = 1.0 if activity.ended is not None else min(1.0, done / total) if total else 0.0
        start = _ENDS[_ORDER[max(0, _ORDER.index(stage) - 1)]]
        self._percent = max(self._percent, start + (_ENDS[stage] - start) * fraction)
        eta = self._eta(activity)
        percent, waiting_for = round(self._percent, 1), self.waiting_for()
        return Snapshot(stage, percent, done, total, eta, self.cache_hit, self._changed_at, waiting_for)

    def _eta(self, activity: _Activity) -> float | None:
        """Return the seconds left of the stage at its average rate so far; later stages are not included."""
        elapsed = self.clock() - activity.started
        if activity.ended is not None or not activity.total or not activity.done or elapsed < _MIN_ELAPSED:
            return None
        return round(elapsed / activity.done * (activity.total - activity.done), 1)
