"""Many simulated hosts in one process: each has an address of its own and answers like a recorded daemon, over TLS.

    python contrib/bench/recorded_hosts.py FOLDER COUNT SILENT

Writes the CA and the addresses into FOLDER and serves until its input ends. The last SILENT hosts accept connections
and never answer. A job that is submitted runs for a second, with its events, and completes.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
import uuid
from pathlib import Path

import trustme

HEALTH = {"status": "healthy", "timestamp": "2027-01-14T10:30:00Z", "version": "0.1.0", "uptime": "2h30m45s"}
TARGETS = {
    "targets": [
        {
            "name": "fast", "plugin": "thin-lvm", "default": True, "healthy": True, "size_bytes": 2**40,
            "free_bytes": 2**39, "thin_pool": {"data_percent": 50.0, "metadata_percent": 9.5},
        }
    ]
}  # fmt: skip
# Seconds that a job runs, and between two of its events.
RUNS, STEP = 1.0, 0.25
_TOTAL = 600 * 2**20


class Host:
    """The jobs of one host."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, object]] = {}
        self.started: dict[str, float] = {}
        self.keys: dict[str, str] = {}

    def submit(self, body: dict[str, object], key: str) -> dict[str, object]:
        if key in self.keys:
            return {"job_id": self.keys[key], "repeated": True}
        job_id = self.keys[key] = str(uuid.uuid4())
        self.started[job_id] = time.monotonic()
        self.jobs[job_id] = {"job_id": job_id, "created_at": "2027-01-14T10:30:00Z", **body}
        return {"job_id": job_id}

    def job(self, job_id: str) -> dict[str, object]:
        done = min(1.0, (time.monotonic() - self.started[job_id]) / RUNS)
        progress = {"stage": "downloading", "percent": 100 * done, "bytes_processed": int(done * _TOTAL)}
        state = {"status": "completed" if done == 1.0 else "running", "progress": {**progress, "bytes_total": _TOTAL}}
        return {**self.jobs[job_id], **state, "updated_at": "2027-01-14T10:30:00Z", "attempts": 1}

    def listed(self, status: str) -> list[dict[str, object]]:
        return [job for job in map(self.job, self.jobs) if status in {"", job["status"]}]


async def serve(host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request; the client closes."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split("\r\n")[0].split(" ")
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = json.loads(await reader.readexactly(int(fields.get("content-length", 0))) or "{}")
        path, _, query = target.partition("?")
        if path == "/api/v1/events":
            await stream(host, writer)
            return
        answer = respond(host, method, path, query, body, fields.get("idempotency-key", ""))
        data = json.dumps(answer).encode()
        code = 202 if method == "POST" and "job_id" in answer else 200
        writer.write(
            f"HTTP/1.1 {code} OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n".encode()
        )
        writer.write(b"Connection: close\r\n\r\n" + data)
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        return
    finally:
        writer.close()


def respond(host: Host, method: str, path: str, query: str, body: dict, key: str) -> dict[str, object]:
    if path in {"/health", "/readyz"}:
        return HEALTH
    if path == "/api/v1/targets":
        return TARGETS
    if method == "POST" and path in {"/api/v1/jobs", "/api/v1/cache/fetch"}:
        return host.submit(body, key)
    if path == "/api/v1/plan":
        return {"image_url": body.get("image_url", ""), "volume_name": body["volume_name"], "refusals": []}
    if path == "/api/v1/jobs":
        status = next((part.partition("=")[2] for part in query.split("&") if part.startswith("status=")), "")
        jobs = host.listed(status)
        return {"jobs": jobs, "count": len(jobs), "offset": 0, "limit": 100}
    return host.job(path.rpartition("/")[2])


async def stream(host: Host, writer: asyncio.StreamWriter) -> None:
    """Send a snapshot, then each job's progress and end as they come."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    jobs = host.listed("")
    writer.write(event("snapshot", {"jobs": jobs, "active": len(jobs)}))
    told = {str(job["job_id"]) for job in jobs if job["status"] == "completed"}
    while not writer.is_closing():
        for job in host.listed(""):
            if job["job_id"] not in told:
                is_over = job["status"] == "completed"
                writer.write(event("job.completed" if is_over else "job.progress", job))
                told |= {str(job["job_id"])} if is_over else set()
        await writer.drain()
        await asyncio.sleep(STEP)


def event(kind: str, data: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Keep the connection until the client leaves."""
    try:
        while await reader.read(65536):
            pass
    except OSError:
        return
    finally:
        writer.close()


async def main(folder: Path, count: int, silent_count: int) -> None:
    """Serve until the input ends."""
    names = [f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(count)]
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    urls = []
    for number, name in enumerate(names):
        if number < count - silent_count:
            host = Host()
            server = await asyncio.start_server(lambda r, w, host=host: serve(host, r, w), name, 0, ssl=context)
        else:
            server = await asyncio.start_server(silent, name, 0)
        urls.append(f"https://{name}:{server.sockets[0].getsockname()[1]}")
    (folder / "hosts.json").write_text(json.dumps(urls))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
