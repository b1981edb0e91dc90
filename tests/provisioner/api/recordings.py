"""Records every example of api.yaml from the real app, so that the document shows what the service really answers.

    python -m tests.provisioner.api.recordings     writes the examples into api.yaml anew

What differs in each run (ids, times, folders, digests) is replaced by a fixed value of the same form.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
import tempfile
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import trio
import trio.testing
import yaml

from provisioner import __version__
from provisioner.api.middleware import BODY_TIMEOUT
from provisioner.cache.cache import VERIFY_QUEUE, VERIFY_THREADS
from provisioner.config import AuthSettings, JobSettings, NamedImage, ServerSettings
from provisioner.config.access import Limits
from provisioner.contracts.errors import TargetUnavailableError
from provisioner.contracts.testing import FakeImage
from provisioner.jobs import feed as feed_module
from provisioner.pipeline.progress import Stage
from provisioner.server import streamed_body
from provisioner.tls.expiry import TlsFiles
from tests.provisioner.api.conftest import URL, running
from tests.provisioner.api.events_client import stream
from tests.provisioner.api.served import served

API_YAML = Path(__file__).parents[3] / "api.yaml"
_COMPONENTS = yaml.load(API_YAML.read_text(), yaml.CSafeLoader)["components"]
DOCUMENTED = {name: example["value"] for name, example in _COMPONENTS["examples"].items()}
IMAGE_URL = "https://images.example.com/ubuntu-24.04.qcow2"
DATA = "/var/lib/libvirt-volume-provisioner"
UNKNOWN = "4f1c7e0a-93b5-4d62-8a0e-5b7d2c9e6f18"
OTHER = "sha256:" + 64 * "0"
_UUID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
_FIXED_IDS = ["f47ac10b-58cc-4372-a567-0e02b2c3d479", "5f0c6c2e-6d0e-4bb2-8f0a-3f0d3a1d6a77"]

# The header of a qcow2 image of 2 GiB, with room for what follows it.
IMAGE = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, 2 * 2**30).ljust(256 * 1024, b"\0")
DIGEST = hashlib.sha256(IMAGE).hexdigest()

JOB = {"image_url": URL, "volume_name": "web-01", "volume_size_gb": 20}
SEED = {"user_data": "#cloud-config\nssh_authorized_keys:\n  - ssh-ed25519 AAAAC3Nz... admin@example.com\n"}
REQUESTS = {
    "JobRequestMinimal": {"image_url": URL, "volume_name": "web-01"},
    "JobRequestFull": {
        **JOB,
        "image_type": "qcow2",
        "correlation_id": "deploy-4711",
        "target": "fake",
        "checksum": DIGEST,
        "priority": 10,
    },
    "ResizeRequestMinimal": {"volume_size_gb": 40},
    "ResizeRequestOnline": {"volume_size_gb": 40, "online": True},
    "JobRequestNamed": {"image": "ubuntu-24.04", "volume_name": "web-01", "volume_size_gb": 20},
    "JobRequestCloudInit": {**JOB, "cloud_init": SEED},
    "FetchRequestMinimal": {"image_url": URL},
    "FetchRequestNamed": {"image": "ubuntu-24.04"},
    "FetchRequestFull": {"image_url": URL, "image_type": "qcow2", "checksum": f"sha256:{DIGEST}"},
}
NAMED = {
    "ubuntu-24.04": NamedImage(url=URL, checksum=DIGEST, description="Ubuntu 24.04 LTS, server cloud image, amd64"),
    "without-checksum": NamedImage(url=URL, checksum_url=f"{URL}.sha256"),
    "unreachable": NamedImage(url="http://images.example/{version}/disk.raw"),
}


def fixed(value, folder):
    """The recorded value with the parts that differ in each run replaced."""
    text = json.dumps(value).replace(str(folder), DATA).replace(URL, IMAGE_URL)
    text = text.replace('"fake"', '"files"').replace("'fake'", "'files'").replace(f'"{__version__}"', '"1.0.0"')
    text = re.sub(r"[0-9.]+ MiB free", "51200.0 MiB free", text)
    ids = dict.fromkeys(one for one in re.findall(_UUID, text) if one not in _FIXED_IDS)
    for found, known in zip(ids, _FIXED_IDS, strict=False):
        text = text.replace(found, known)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "2024-01-14T10:30:00Z", text)
    text = re.sub(r"on \d{4}-\d\d-\d\d, in \d+ days", "on 2024-01-20, in 5 days", text)
    running = r'("percent": (?!100,)[\d.]+, "bytes_processed": \d+, "bytes_total": \d+, "eta_sec": )\d+'
    text = re.sub(running, r"\g<1>29", text)
    text = re.sub(r'("uptime": )"[^"]+"', r'\1"2h30m45s"', text)
    text = re.sub(r"@kept\.[0-9a-f]{16}\.", "@kept.5b7d2c9e6f184f1c.", text)
    value = json.loads(text)
    if "timings" in value:  # stages overlap: in which order they begin, and whether a failure stops the last, varies
        stages = [stage for stage in Stage if stage in value["timings"] and value["status"] == "completed"]
        value["timings"] = {stage.value: 0.3 for stage in stages} or {"downloading": 0.3}
    return value


class Recorder:
    """The examples by name."""

    def __init__(self):
        self.examples = {}

    @asynccontextmanager
    async def service(self, **options):
        with tempfile.TemporaryDirectory() as name:
            self.folder = Path(name)
            async with running(self.folder, **options) as service:
                service.source.images |= {
                    URL: FakeImage(IMAGE),
                    f"{URL}.sha256": FakeImage(f"{DIGEST}  disk.raw\n".encode()),
                }
                yield service

    async def keep(self, name, response, status=200):
        body = await response.get_json()
        assert response.status_code == status, (name, body)
        self.examples[name] = fixed(body, self.folder)
        return body


async def record():
    """All examples of api.yaml as the app answers them now."""
    to = Recorder()
    for part in (
        _requests,
        _jobs,
        _plans,
        _failures,
        _cache,
        _uploads,
        _named_images,
        _volumes,
        _replaced,
        _events,
        _host,
        _limits,
        _health,
        _errors,
    ):
        await part(to)
    return to.examples


async def _requests(to):
    for name, body in REQUESTS.items():
        if name.startswith("Resize"):  # sent with the volumes
            continue
        path = "/api/v1/jobs" if name.startswith("Job") else "/api/v1/cache/fetch"
        async with to.service(work=False, images=NAMED) as service:
            await to.keep("JobAccepted", await service.call("POST", path, json=body), 202)
            to.examples[name] = fixed(body, to.folder)


async def _jobs(to):
    full = {**JOB, "correlation_id": "deploy-4711"}
    async with to.service(work=False) as service:
        await to.keep("JobListEmpty", await service.call("GET", "/api/v1/jobs"))
        job_id = (await (await service.submit(full)).get_json())["job_id"]
        await to.keep("JobPending", await service.call("GET", f"/api/v1/jobs/{job_id}"))
        await to.keep("VolumeBusy", await service.submit(full), 409)
        await to.keep("RetryTooEarly", await service.call("POST", f"/api/v1/jobs/{job_id}/retry"), 409)
        await service.submit({**full, "volume_name": "web-02"})
        await to.keep("JobListPage", await service.call("GET", "/api/v1/jobs?limit=1"))
    async with to.service() as service:
        service.source.at_byte, service.source.steps.hang_at = len(IMAGE) // 2, "byte"
        job_id = (await (await service.submit(full)).get_json())["job_id"]
        await service.source.steps.reached.wait()
        await trio.sleep(0.4)  # no time left is told earlier
        await to.keep("JobRunning", await service.call("GET", f"/api/v1/jobs/{job_id}"))
    async with to.service() as service:
        service.converter.steps.hang_at = "flush"
        job_id = (await (await service.submit(full)).get_json())["job_id"]
        await service.converter.steps.reached.wait()
        await _cached(service)
        await to.keep("CachedImageInUse", await service.call("DELETE", f"/api/v1/cache/images/{DIGEST}"), 409)
        await to.keep("CancelDone", await service.call("POST", f"/api/v1/jobs/{job_id}/cancel"))
        await to.keep("JobCancelled", await service.call("GET", f"/api/v1/jobs/{job_id}"))
    async with to.service() as service:
        done = await service.done(full)
        await to.keep("JobCompleted", await service.call("GET", f"/api/v1/jobs/{done['job_id']}"))
        await to.keep("CancelTooLate", await service.call("POST", f"/api/v1/jobs/{done['job_id']}/cancel"), 400)
        seeded = await service.done({**JOB, "cloud_init": SEED})
        await to.keep("JobSeeded", await service.call("GET", f"/api/v1/jobs/{seeded['job_id']}"))
        retried = await service.call("POST", f"/api/v1/jobs/{seeded['job_id']}/retry")
        await to.keep("RetryWithCloudInit", retried, 409)
        await to.keep("JobNotFound", await service.call("GET", f"/api/v1/jobs/{UNKNOWN}"), 404)


async def _plans(to):
    path = "/api/v1/plan"
    async with to.service() as service:
        await to.keep("PlanDownload", await service.call("POST", path, json=JOB))
        await service.done(JOB)
        await to.keep("PlanReplace", await service.call("POST", path, json=JOB))
        service.target.in_use.add("web-01")
        refused = {**JOB, "volume_size_gb": 1}
        await to.keep("PlanRefused", await service.call("POST", path, json=refused))


async def _failures(to):
    async with to.service() as service:
        failed = await service.done({**JOB, "correlation_id": "deploy-4711", "checksum": OTHER})
        await to.keep("JobFailed", await service.call("GET", f"/api/v1/jobs/{failed['job_id']}"))


async def _cached(service):
    with trio.fail_after(60):
        while not (await (await service.call("GET", "/api/v1/cache/images")).get_json())["count"]:  # noqa: ASYNC110
            await trio.sleep(0.005)  # publishing is not to be waited for from outside


async def _cache(to):
    image = f"/api/v1/cache/images/{DIGEST}"
    async with to.service() as service:
        await to.keep("CachedImageEmpty", await service.call("GET", "/api/v1/cache/images"))
        await to.keep("FetchUrlMissing", await service.call("POST", "/api/v1/cache/fetch", json={}), 400)
        await service.done(JOB)
        await to.keep("CachedImagePage", await service.call("GET", "/api/v1/cache/images"))
        await to.keep("CachedImagePinned", await service.call("PUT", f"{image}/pin"))
        await to.keep("CachedImageUnpinned", await service.call("DELETE", f"{image}/pin"))
        await to.keep("CachedImageIntact", await service.call("POST", f"{image}/verify"))
        await to.keep("CachedImageRemoved", await service.call("DELETE", image))
        await to.keep("CachedImageUnknown", await service.call("DELETE", image), 404)
        await service.done({**JOB, "volume_name": "web-02"})
        await to.keep("CachePruned", await service.call("POST", "/api/v1/cache/prune"))


async def _uploads(to):
    digest, path = f"sha256:{DIGEST}", "/api/v1/cache/images"
    name = "name=builds/ubuntu-24.04.qcow2"
    state, upload = f"{path}/{digest}/upload?size={len(IMAGE)}&{name}", f"{path}?checksum={digest}&{name}"
    to.examples["UploadBytes"] = "the bytes of the image file"
    async with to.service(work=False) as service:
        await to.keep("UploadNew", await service.call("GET", state))
        gap = {"Content-Range": f"bytes 65536-{len(IMAGE) - 1}/{len(IMAGE)}"}
        await to.keep("UploadGap", await service.upload(upload, IMAGE[65536:], headers=gap), 409)
        await to.keep("UploadMismatch", await service.upload(upload, IMAGE + b"x"), 422)
        await to.keep("UploadOtherFormat", await service.upload(f"{upload}&image_type=raw", IMAGE), 422)
        await to.keep("UploadDone", await service.upload(upload, IMAGE), 201)
        await to.keep("UploadCached", await service.upload(upload, IMAGE))
        await to.keep("UploadKnown", await service.call("GET", state))
        large = {"Content-Length": str(2**40)}
        await to.keep("UploadTooLarge", await service.call("PUT", upload, headers=large), 413)
        await to.keep("UploadWithoutLength", await service.call("PUT", upload), 411)
        to.examples["UploadTooSlow"] = await _slow_upload(service, upload)
    async with to.service(work=False, cache_size=len(IMAGE) // 2) as service:
        await to.keep("UploadWithoutRoom", await service.upload(upload, IMAGE), 507)


async def _slow_upload(service, path):
    """What a client gets whose image does not come."""
    window, streamed_body.WINDOW = streamed_body.WINDOW, 0.01
    other = path.replace(DIGEST, 64 * "1")
    sent = {"X-API-Token": service.token["admin"], "Content-Length": "1000"}
    try:
        async with service.app.test_client().request(other, method="PUT", headers=sent) as connection:
            await connection.send(b"x")
            response = await connection.as_response()
    finally:
        streamed_body.WINDOW = window
    assert response.status_code == 408
    body = await response.get_json()
    return {**body, "message": body["message"].replace("0.01", f"{window:g}")}


async def _named_images(to):
    async with to.service(work=False, images={"ubuntu-24.04": NAMED["ubuntu-24.04"]}) as service:
        await to.keep("NamedImageList", await service.call("GET", "/api/v1/images"))
        await to.keep("NamedImageResolved", await service.call("GET", "/api/v1/images/ubuntu-24.04"))
        await to.keep("NamedImageUnknown", await service.call("GET", "/api/v1/images/ubuntu"), 404)
    async with to.service(work=False, images=NAMED) as service:
        service.source.images[f"{URL}.sha256"] = FakeImage(b"# nothing here\n")
        unusable = await service.call("GET", "/api/v1/images/without-checksum")
        await to.keep("NamedImageUnusable", unusable, 422)
        await to.keep("NamedImageUnresolved", await service.call("GET", "/api/v1/images/unreachable"), 502)


async def _volumes(to):
    volume = "/api/v1/volumes/fake/web-01"
    async with to.service() as service:
        await to.keep("VolumeEmpty", await service.call("GET", "/api/v1/volumes"))
        await service.done(JOB)
        await to.keep("VolumePage", await service.call("GET", "/api/v1/volumes"))
        await service.done({**JOB, "volume_name": "web-02", "cloud_init": SEED})
        await to.keep("VolumeSeeds", await service.call("GET", "/api/v1/volumes?offset=1"))
        await to.keep("VolumeRemovedSeed", await service.call("DELETE", "/api/v1/volumes/fake/web-02"))
        resized = {name: body for name, body in REQUESTS.items() if name.startswith("Resize")}
        for name, body in resized.items():
            to.examples[name] = body
            kept = "VolumeUnchanged" if body.get("online") else "VolumeResized"
            await to.keep(kept, await service.call("POST", f"{volume}/resize", json=body))
        smaller, larger = ({"volume_size_gb": size} for size in (20, 2**20))
        await to.keep("VolumeLarger", await service.call("POST", f"{volume}/resize", json=smaller), 409)
        await to.keep("TargetFull", await service.call("POST", f"{volume}/resize", json=larger), 507)
        service.target.in_use.add("web-01")
        await to.keep("VolumeInUse", await service.call("DELETE", volume), 409)
        service.target.in_use.clear()
        await to.keep("VolumeRemoved", await service.call("DELETE", volume))
        await to.keep("VolumeUnknown", await service.call("DELETE", volume), 404)


async def _replaced(to):
    listing, volume = "/api/v1/volumes/replaced", "/api/v1/volumes/fake/web-01"
    async with to.service() as service:
        await to.keep("ReplacedEmpty", await service.call("GET", listing))
        await to.keep("RestoreUnknown", await service.call("POST", f"{volume}/restore"), 404)
        await to.keep("VolumeUnknownHere", await service.call("POST", f"{volume}/adopt"), 404)
        (service.target.folder / "web-01").write_bytes(b"theirs")
        plan = await service.call("POST", "/api/v1/plan", json=JOB)
        await to.keep("PlanReplaceForeign", plan)
        done = await service.done(JOB)
        await to.keep("JobReplaced", await service.call("GET", f"/api/v1/jobs/{done['job_id']}"))
        await to.keep("ReplacedPage", await service.call("GET", listing))
        request = {"kept_as": done["replaced"]["kept_as"]}
        to.examples["RestoreRequest"] = fixed(request, to.folder)
        await to.keep("VolumeRestored", await service.call("POST", f"{volume}/restore", json=request))
        await to.keep("VolumeAdopted", await service.call("POST", f"{volume}/adopt"))
        await to.keep("VolumeOurs", await service.call("POST", f"{volume}/adopt"), 409)
        (service.target.folder / ".lvp" / "web-01.json").unlink()
        await service.done(JOB)
        await to.keep("RestoreWhich", await service.call("POST", f"{volume}/restore"), 400)
        (kept, *_) = (await (await service.call("GET", listing)).get_json())["replaced"]
        removed = await service.call("DELETE", f"{volume}/replaced", query_string={"kept_as": kept["kept_as"]})
        await to.keep("ReplacedVolumeRemoved", removed)


async def _events(to):
    half, go_on = trio.Event(), trio.Event()

    async def stop_half_way():
        half.set()
        await go_on.wait()

    async with by_hand(), to.service() as service:
        service.source.at_byte, service.source.steps.act_at["byte"] = len(IMAGE) // 2, stop_half_way
        feed, supervisor = service.services.notifier.feed, service.services.supervisor
        async with served(service) as (url, _), follow(service, url, "/api/v1/events") as all_events:
            await all_events.next()
            job_id = (await (await service.submit(JOB)).get_json())["job_id"]
            await half.wait()
            await trio.sleep(0.4)  # no time left is told earlier
            async with follow(service, url, f"/api/v1/jobs/{job_id}/events") as events:
                await events.next()
                feed.look(supervisor.running())
                await events.next(progress=True)
                go_on.set()
                await events.rest()
                to.examples["JobEvents"] = fixed_events(events.blocks, to.folder)
            await all_events.until("job.completed")
            await service.call("POST", "/api/v1/volumes/fake/web-01/resize", json={"volume_size_gb": 40})
            feed.publish("service.stopping", None)
            feed.close()
            await all_events.rest()
            to.examples["AllEvents"] = fixed_events(all_events.blocks, to.folder, without="job.progress")
    async with to.service() as service:
        feed = service.services.notifier.feed
        feed.most_per_group = 0
        async with served(service) as (url, _), follow(service, url, "/api/v1/events", status=429) as events:
            body = json.loads(await events.response.aread())
            to.examples["StreamShareUsed"] = fixed(with_default(body, "max_event_streams_per_address"), to.folder)
        feed.most_per_group, feed.most_readers = 1, 0
        async with served(service) as (url, _), follow(service, url, "/api/v1/events", status=503) as events:
            body = json.loads(await events.response.aread())
            to.examples["StreamsFull"] = fixed(with_default(body, "max_event_streams"), to.folder)


@asynccontextmanager
async def by_hand():
    """Let the feed look at no job by itself."""
    tick, feed_module._TICK = feed_module._TICK, 86400.0
    try:
        yield
    finally:
        feed_module._TICK = tick


def follow(service, url, path, **more):
    return stream(url, path, service.token["admin"], **more)


def with_default(body, limit):
    """The error as it is with the default limit."""
    return {**body, "message": body["message"].replace("0", str(getattr(ServerSettings(), limit)), 1)}


def fixed_events(blocks, folder, without=""):
    """The recorded events as one text, with the parts that differ in each run replaced."""
    text = []
    for block in blocks:
        lines = block.splitlines()
        if block.startswith(":") or (without and f"event: {without}" in lines):
            continue
        for line in lines:
            name, _, value = line.partition(": ")
            if name == "data":
                value = json.dumps(fixed(json.loads(value), folder), separators=(",", ":"))
            elif name == "id":
                value = f"3f9a1c07-{value.partition('-')[2]}"
            text.append(f"{name}: {value}\n")
        text.append("\n")
    return "".join(text)


async def _host(to):
    async with to.service(work=False) as service:
        await to.keep("TargetList", await service.call("GET", "/api/v1/targets"))
        await to.keep("SourceList", await service.call("GET", "/api/v1/sources"))
        await to.keep("Whoami", await service.call("GET", "/api/v1/whoami"))
        token = service.tokens.create("ci", "operator", time.time() + 3600, Limits(volumes=["ci-*"], max_jobs=4))
        sent = {"X-API-Token": token}
        await to.keep("WhoamiLimited", await service.call("GET", "/api/v1/whoami", role=None, headers=sent))
    async with to.service(work=False) as service:
        service.target.steps.fail_at["capacity"] = TargetUnavailableError("volume group vg0 does not exist")
        await to.keep("TargetUnhealthy", await service.call("GET", "/api/v1/targets"))


async def _limits(to):
    async with to.service(work=False, jobs=JobSettings(max_queued=1)) as service:
        await service.submit(JOB)
        await to.keep("QueueFull", await service.submit({**JOB, "volume_name": "web-02"}), 429)
    async with to.service(work=False) as service:
        limited = service.tokens.create("ci", "operator", limits=Limits(volumes=["ci-*"], max_jobs=1))
        headers = {"X-API-Token": limited}
        await to.keep("OutsideLimits", await service.submit(JOB, role=None, headers=headers), 403)
        await service.submit({**JOB, "volume_name": "ci-01"}, role=None, headers=headers)
        await to.keep(
            "ShareUsed", await service.submit({**JOB, "volume_name": "ci-02"}, role=None, headers=headers), 429
        )
        key = {"Idempotency-Key": "k-1"}
        await service.submit(JOB, headers=key)
        await to.keep("JobRepeated", await service.submit(JOB, headers=key), 202)
        await to.keep("KeyReused", await service.submit({**JOB, "volume_name": "web-02"}, headers=key), 409)
        await to.keep("Forbidden", await service.submit(JOB, role="viewer"), 403)
        await to.keep("Unauthorized", await service.call("GET", "/api/v1/jobs", role=None), 401)
        wrong = {"X-API-Token": "wrong"}
        for _ in range(AuthSettings().max_failures):
            await service.call("GET", "/api/v1/jobs", role=None, headers=wrong)
        await to.keep("TooManyFailures", await service.call("GET", "/api/v1/jobs", role=None, headers=wrong), 429)


async def _health(to):
    async with to.service(work=False) as service:
        await to.keep("HealthHealthy", await service.call("GET", "/health", role=None))
        now = time.time()
        service.services.warnings = lambda: TlsFiles({"server": now + 5.5 * 86400}).warnings(now, 30 * 86400)
        await to.keep("HealthWarning", await service.call("GET", "/health", role=None))
        service.services.warnings = list
        for number in range(3):
            await service.submit({**JOB, "volume_name": f"web-{number}"})
        await to.keep("HealthDegraded", await service.call("GET", "/health", role=None))
        await to.keep("Ready", await service.call("GET", "/readyz", role=None))
        text = await (await service.call("GET", "/metrics", role=None)).get_data(as_text=True)
        wanted = r"^libvirt_volume_provisioner_(?:requests_total\{.*202.*|jobs_total\{.*completed.*|active_jobs) .*\n"
        to.examples["Metrics"] = "".join(re.findall(wanted, text, re.MULTILINE))
        accept = {"Accept": "application/openmetrics-text"}
        text = await (await service.call("GET", "/metrics", role=None, headers=accept)).get_data(as_text=True)
        to.examples["MetricsOpen"] = "".join([*re.findall(wanted, text, re.MULTILINE), "# EOF\n"])
    async with to.service(work=False) as service:
        service.target.steps.fail_at["capacity"] = TargetUnavailableError("volume group vg0 does not exist")
        await to.keep("NotReady", await service.call("GET", "/readyz", role=None), 503)


async def _errors(to):
    async with to.service(work=False) as service:
        await to.keep("InvalidField", await service.submit({**JOB, "volume_size_gb": 0}), 400)
        await to.keep("InvalidParameter", await service.call("GET", "/api/v1/jobs?limit=5000"), 400)
        elsewhere = {**JOB, "image_url": "http://elsewhere.example/x"}
        await to.keep("ForeignUrl", await service.submit(elsewhere), 400)
        sent = {"headers": {"Content-Type": "application/json"}}
        await to.keep("PayloadTooLarge", await service.call("POST", "/api/v1/jobs", data=b" " * 65537, **sent), 413)
        await to.keep("UnsupportedMediaType", await service.call("POST", "/api/v1/jobs", data=b"{}"), 415)
        to.examples["RequestTimeout"] = await _slow_body(service)
        service.target.steps.fail_at["remove"] = RuntimeError("a bug")
        await to.keep("InternalError", await service.call("DELETE", "/api/v1/volumes/fake/web-01"), 500)
        await service.services.supervisor.drain()
        await to.keep("ShuttingDown", await service.submit(JOB), 503)
    async with to.service() as service, trio.open_nursery() as nursery:
        await service.done(JOB)
        busy, free = service.services.cache._verifying, threading.Event()
        for _ in range(VERIFY_THREADS + VERIFY_QUEUE):
            nursery.start_soon(busy.run, free.wait)
        await trio.testing.wait_all_tasks_blocked()
        await to.keep("TooManyVerifies", await service.call("POST", f"/api/v1/cache/images/{DIGEST}/verify"), 429)
        free.set()


async def _slow_body(service):
    """What a client gets whose body does not come."""
    service.app.config["BODY_TIMEOUT"] = 0.01
    sent = {"X-API-Token": service.token["admin"], "Content-Type": "application/json", "Content-Length": "10"}
    async with service.app.test_client().request("/api/v1/jobs", method="POST", headers=sent) as connection:
        await connection.send(b"{")
        response = await connection.as_response()
    assert response.status_code == 408
    body = await response.get_json()
    return {**body, "message": body["message"].replace("0.01", str(BODY_TIMEOUT))}


class Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


def _text(dumper, value):
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


Dumper.add_representer(str, _text)


def written(text, examples):
    """The document's text with these examples."""
    named = {name: {"value": value} for name, value in sorted(examples.items())}
    body = yaml.dump(named, Dumper=Dumper, sort_keys=False, width=110, allow_unicode=True)
    start = text.index("\n  examples:\n") + len("\n  examples:\n")
    return text[:start] + re.sub(r"^(?=.)", "    ", body, flags=re.MULTILINE)


if __name__ == "__main__":
    API_YAML.write_text(written(API_YAML.read_text(), trio.run(record)))
    sys.exit(0)
