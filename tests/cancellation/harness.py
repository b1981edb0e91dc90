"""A daemon without its API: a real supervisor, pipeline, cache and store over fakes that hang or fail."""

import hashlib
import struct
import sys
import threading
import time
import traceback
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from provisioner.back_ends import BackEnds
from provisioner.cache import ImageCache
from provisioner.config import CacheSettings, JobSettings
from provisioner.contracts import GIB, MIB, ByteSize, Checksum, Duration, ImageUrl
from provisioner.contracts.testing import FakeConverter, FakeGuard, FakeSource, FakeTarget
from provisioner.jobs import JobSpec, JobStore, Supervisor
from provisioner.jobs.notify import Notifier
from provisioner.observe.metrics import Metrics
from provisioner.pipeline.pipeline import Pipeline

IMAGE = bytes(range(1, 252)) * 1200  # 300 kB without zeros, and no two blocks in a row are equal
URL = "https://images.example.com/disk.raw"
DIGEST = f"sha256:{hashlib.sha256(IMAGE).hexdigest()}"
OLD = b"what the user had"

# Another source, target and format, for a job that must not be affected.
OTHER_URL = "https://other.example.com/disk.qcow2"
OTHER_IMAGE = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, MIB).ljust(64 * 1024, b"\0")
OTHER_SPEC = JobSpec(
    image_url=ImageUrl.parse(OTHER_URL),
    volume_name="bystander",
    size_bytes=GIB,
    target="other",
    checksum=Checksum("sha256", hashlib.sha256(OTHER_IMAGE).hexdigest()),
)
SPEC = JobSpec(
    image_url=ImageUrl.parse(URL),
    image_format="raw",
    volume_name="web01",
    size_bytes=GIB,
    target="main",
    checksum=Checksum.parse(DIGEST),
)


@dataclass
class Harness:
    """One host. A test makes ``source``, ``converter``, ``target`` and ``guard`` hang or fail."""

    folder: Path
    source: FakeSource = field(default_factory=lambda: FakeSource({URL: IMAGE}))
    converter: FakeConverter = field(default_factory=FakeConverter)
    target: FakeTarget | None = None
    guard: FakeGuard = field(default_factory=FakeGuard)
    jobs: JobSettings = field(default_factory=lambda: JobSettings(max_concurrent=2, shutdown_grace=Duration(0)))
    cache_settings: CacheSettings = field(
        default_factory=lambda: CacheSettings(min_free=ByteSize(0), download_attempts=1)
    )

    def __post_init__(self):
        self.target = self.target or FakeTarget(self.folder / "main", name="main")
        self.other = FakeTarget(self.folder / "other", name="other")
        self.other_source = FakeSource({OTHER_URL: OTHER_IMAGE})
        self.back_ends = BackEnds(
            sources={"main": self.source, "other": self.other_source},
            converters={"raw": self.converter, "qcow2": FakeConverter()},
            targets={"main": self.target, "other": self.other},
            guards={"guard": self.guard},
            default_target="main",
        )

    @property
    def fakes(self):
        return {"source": self.source, "converter": self.converter, "target": self.target, "guard": self.guard}

    def steps(self, fake):
        return self.fakes[fake].steps

    @asynccontextmanager
    async def running(self):
        """Run the daemon; leaving is a shutdown without grace, and entering again a restart."""
        with plain_logs():
            async with self._running():
                yield self

    @asynccontextmanager
    async def _running(self):
        self.store = JobStore(self.folder / "jobs.sqlite")
        await self.store.open()
        self.metrics = Metrics()
        self.cache = ImageCache(self.folder / "cache", self.cache_settings)
        self.pipeline = Pipeline(self.back_ends, self.cache, require_checksum=True)
        self.supervisor = Supervisor(self.pipeline, self.store, self.jobs, self.metrics, Notifier({}))
        timed_out = True
        try:
            async with trio.open_nursery() as outer:
                outer.cancel_scope.deadline = trio.current_time() + 20  # ends a test that hangs
                await outer.start(self.cache.run)
                await self.supervisor.recover()
                async with trio.open_nursery() as jobs:
                    jobs.start_soon(self.supervisor.run)
                    try:
                        yield self
                    finally:
                        jobs.cancel_scope.cancel()
                timed_out = outer.cancel_scope.cancel_called
                outer.cancel_scope.cancel()
            assert not timed_out, "the test timed out"
        finally:
            await self.store.aclose()

    @asynccontextmanager
    async def only_store(self):
        """Open the store without running the daemon."""
        store = JobStore(self.folder / "jobs.sqlite")
        await store.open()
        try:
            yield store
        finally:
            await store.aclose()

    async def submit(self, spec=SPEC, key=None):
        job = await self.supervisor.submit(spec, request_id="r", principal=None, idempotency_key=key)
        return job.job_id

    async def ended(self, job_id):
        """Wait until the job has ended; return it."""
        active = self.supervisor._workers.active.get(job_id)
        if active is not None:
            await active.ended.wait()
        return await self.store.get(job_id)

    async def run(self, spec=SPEC):
        return await self.ended(await self.submit(spec))

    # --- checks after the end of a job ---

    def assert_nothing_left(self):
        assert self.target.leftovers() == []
        assert self.other.leftovers() == []
        assert list((self.folder / "cache" / ".lvp" / "partial").iterdir()) == []
        assert self.source.open_now == 0
        assert self.open_files() == []
        assert busy_threads() == []
        assert self.cache._downloads._by_key == {}
        assert not self.cache._catalog.users
        self.assert_cache_is_true()

    def assert_cache_is_true(self):
        """Check that the files in the cache are exactly its entries, and that their digests match."""
        on_disk = {path.name for path in (self.folder / "cache").iterdir() if path.name != ".lvp"}
        assert on_disk == {entry.file_name for entry in self.cache.entries()}
        for entry in self.cache.entries():
            data = Path(self.cache.path(entry)).read_bytes()
            assert hashlib.sha256(data).hexdigest() == entry.sha256

    def open_files(self):
        """Return the open files below the harness's folder, except the databases."""
        names = []
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # the one that lists them
                names.append(str(link.readlink()))
        return [name for name in names if name.startswith(str(self.folder)) and ".sqlite" not in name]

    def volume(self, name="web01"):
        """Return the beginning of the volume, or None if there is no volume."""
        path = self.target.folder / name
        if not path.exists():
            return None
        with path.open("rb") as file:
            return file.read(len(IMAGE)).rstrip(b"\0")

    def put_old_volume(self):
        """Create a volume that exists before the job."""
        with (self.target.folder / "web01").open("wb") as file:
            file.write(OLD)
            file.truncate(GIB)


@contextmanager
def plain_logs():
    """Log tracebacks without rich, which takes seconds for each."""
    before = structlog.get_config()
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, renderer])
    try:
        yield
    finally:
        structlog.configure(**before)


def busy_threads():
    """Return the stacks of other threads that are still in our code, except log writers, which never end.

    Waits for threads whose caller was cancelled (a write of the store); they end by themselves a moment later.
    """
    stop = time.monotonic() + 60
    while (stacks := _stacks_of_ours()) and time.monotonic() < stop:
        time.sleep(0.001)
    return stacks


def _stacks_of_ours():
    here = threading.get_ident()
    stacks = {ident: traceback.extract_stack(frame) for ident, frame in sys._current_frames().items() if ident != here}
    ours = [stack for stack in stacks.values() if any("/provisioner/" in frame.filename for frame in stack)]
    return [stack for stack in ours if not any(frame.filename.endswith("/line_writer.py") for frame in stack)]
