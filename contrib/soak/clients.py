"""The operations of one client in a round, and the expected state of its volumes afterwards.

Each client has its own volumes, so it knows in which order its operations took effect. If the response to a request is
lost, the request is repeated (a submit with the same Idempotency-Key) until there is one.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    import random
    from collections import Counter

    from contrib.soak.lab import Harness, Image

VOLUMES = 3  # for each client
ENDED = {"completed", "failed", "cancelled"}
# Seconds; a restart under load, a full disk and a frozen source must be over by then.
ANSWER_LIMIT = 180.0


class BrokenPromiseError(Exception):
    """The daemon violated one of its guarantees."""


@dataclass
class Submitted:
    """An accepted job."""

    job_id: str
    image: Image


@dataclass
class Client:
    """``holds``: the image each volume must contain (None: no such volume); ``reported``: the end of each job."""

    number: int
    lab: Harness
    done: Counter[str]
    holds: dict[str, Image | None] = field(default_factory=dict)
    waiting: dict[str, Submitted] = field(default_factory=dict)
    reported: dict[str, str] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.holds = {f"soak-{self.number}-{number}": None for number in range(VOLUMES)}

    def work(self, chance: random.Random, seconds: float) -> None:
        """Do random operations for ``seconds``; keep an error for the round."""
        stop = time.monotonic() + seconds
        operations = [self.submit] * 6 + [self.cancel] * 2 + [self.remove] * 2 + [self.pin, self.prune, self.look]
        try:
            while time.monotonic() < stop:
                chance.choice(operations)(chance)
                time.sleep(chance.random() * 0.4)
        except BaseException as error:  # noqa: BLE001 - reported by the round
            self.errors.append(error)

    # --- operations ---

    def submit(self, chance: random.Random) -> None:
        """Submit a job for one of the volumes; if the volume has an active job, the response must be 409."""
        name, image = chance.choice(sorted(self.holds)), chance.choice(self.lab.images)
        self.settle(name)
        body = {"image_url": image.url, "volume_name": name, "volume_size_gb": 1, "image_type": image.kind}
        answer = self._certain("POST", "/api/v1/jobs", body, **{"Idempotency-Key": str(uuid.uuid4())})
        if answer.status_code == 202:
            if name in self.waiting and not self.settle(name):
                raise BrokenPromiseError(
                    f"a second job for {name} was accepted while {self.waiting[name].job_id} is active"
                )
            self.waiting[name] = Submitted(answer.json()["job_id"], image)
        elif answer.status_code not in {409, 429, 503}:
            raise BrokenPromiseError(f"submit answered {answer.status_code}: {answer.text}")
        self.done[f"submit {answer.status_code}"] += 1

    def cancel(self, chance: random.Random) -> None:
        """Cancel one of the active jobs; 200 means that it is cancelled."""
        if not self.waiting:
            return
        job = self.waiting[chance.choice(sorted(self.waiting))]
        answer = self._certain("POST", f"/api/v1/jobs/{job.job_id}/cancel")
        if answer.status_code == 200:
            self._tell(job.job_id, "cancelled")
        elif answer.status_code not in {400, 500, 503}:
            raise BrokenPromiseError(f"cancel answered {answer.status_code}: {answer.text}")
        self.done[f"cancel {answer.status_code}"] += 1

    def remove(self, chance: random.Random) -> None:
        """Remove a volume without an active job; the request may be repeated, so 404 may mean removed."""
        name = chance.choice(sorted(self.holds))
        if not self.settle(name):
            return
        answer = self._certain("DELETE", f"/api/v1/volumes/files/{name}")
        if answer.status_code in {200, 404}:
            self.holds[name] = None
        elif answer.status_code not in {409, 503}:
            raise BrokenPromiseError(f"remove answered {answer.status_code}: {answer.text}")
        self.done[f"remove {answer.status_code}"] += 1

    def pin(self, chance: random.Random) -> None:
        """Pin or unpin a cached image."""
        images = self._certain("GET", "/api/v1/cache/images").json().get("images", [])
        if images:
            digest = chance.choice(images)["checksum"]
            answer = self._certain(chance.choice(["PUT", "DELETE", "DELETE"]), f"/api/v1/cache/images/{digest}/pin")
            self.done[f"pin {answer.status_code}"] += 1

    def prune(self, _chance: random.Random) -> None:
        """Remove images that are neither used nor pinned."""
        self.done[f"prune {self._certain('POST', '/api/v1/cache/prune', {}).status_code}"] += 1

    def look(self, chance: random.Random) -> None:
        """Send a request that only reads."""
        path = chance.choice(["/metrics", "/health", "/readyz", "/api/v1/jobs?limit=50", "/api/v1/volumes"])
        self.done[f"GET {path.partition('?')[0]} {self._certain('GET', path).status_code}"] += 1

    # --- results ---

    def settle(self, name: str) -> bool:
        """Record the end of the volume's job; return whether no job is active for it."""
        job = self.waiting.get(name)
        if job is None:
            return True
        status = self.status(job.job_id)
        if status not in ENDED:
            return False
        if status == "completed":
            self.holds[name] = job.image
        del self.waiting[name]
        return True

    def status(self, job_id: str) -> str:
        """Return the job's status; check that it is not forgotten and that its end has not changed."""
        answer = self._certain("GET", f"/api/v1/jobs/{job_id}")
        if answer.status_code == 404:
            raise BrokenPromiseError(f"job {job_id} was accepted but is now unknown")
        if answer.status_code != 200:
            return "unknown"
        status: str = answer.json()["status"]
        if status in ENDED:
            self._tell(job_id, status)
        elif job_id in self.reported:
            raise BrokenPromiseError(f"job {job_id} was reported as {self.reported[job_id]} but is now {status}")
        return status

    def _tell(self, job_id: str, status: str) -> None:
        if self.reported.setdefault(job_id, status) != status:
            raise BrokenPromiseError(f"job {job_id} was reported as {self.reported[job_id]} but is now {status}")

    def _certain(self, method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
        """Repeat a request until it is answered: the daemon may be restarting, frozen or out of space."""
        stop = time.monotonic() + ANSWER_LIMIT
        while True:
            try:
                return self.lab.call(method, path, body, **headers)
            except httpx.TransportError as error:
                if time.monotonic() > stop:
                    raise BrokenPromiseError(f"no answer to {method} {path}: {error!r}") from error
                time.sleep(0.2)
