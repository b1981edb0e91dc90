"""Writes provisioner/client/async_client.py from sync_client.py, so that each method exists once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "provisioner" / "client"
NOTE = "``contrib/dev/async_client.py`` writes this file from ``sync_client``."
STREAM = (
    r"        with \(\n"
    r"            transport_errors\(self\._url\),\n"
    r"            self\._http\.stream\((.*)\) as response,\n"
    r"        \):"
)
REPLACED = (
    (r'^"""The client for threads\..*?"""', f'"""The client for asyncio and trio. {NOTE}"""'),
    (r"^class Client:", "class AsyncClient:"),
    (r"It is thread-safe, keeps", "It keeps"),
    (r"closes them at the end of ``with``", "closes them at the end of ``async with``"),
    (r"    def (?!__init__|_listed|jobs|volumes|replaced_volumes|cached_images)", "    async def "),
    (r"    def _listed", "    async def _listed"),
    (r"__enter__", "__aenter__"),
    (r"__exit__", "__aexit__"),
    (r"def close\(", "def aclose("),
    (r"self\.close\(\)", "await self.aclose()"),
    (r"self\._http\.close\(\)", "await self._http.aclose()"),
    (r"httpx\.HTTPTransport", "httpx.AsyncHTTPTransport"),
    (r"httpx\.Client", "httpx.AsyncClient"),
    (r"time\.sleep", "await anyio.sleep"),
    (r"^import time$", ""),
    (r"^import httpx$", "import anyio\nimport httpx"),
    (r"Iterator", "AsyncIterator"),
    (r"self\.(_send|_once|_look|job|_http\.request)\(", r"await self.\1("),
    (r"for job in self\.follow", "async for job in self.follow"),
    (r"(await self\._send\(get\(.*\)\))\[", r"(\1)["),
    (r"            yield from (.*)", r"            for one in \1:\n                yield one"),
    (r"for line in response\.iter_lines\(\)", "async for line in response.aiter_lines()"),
    (r"response\.read\(\)", "await response.aread()"),
    (STREAM, r"        with transport_errors(self._url):\n            async with self._http.stream(\1) as response:"),
)  # fmt: skip


def written() -> str:
    """Return the async client."""
    text = (FOLDER / "sync_client.py").read_text()
    for pattern, by in REPLACED:
        text = re.sub(pattern, by, text, flags=re.MULTILINE)
    # The body of the stream is one level deeper there.
    head, begin, rest = text.partition(" as response:\n")
    body, end, tail = rest.partition("    # --- volumes ---")
    text = head + begin + re.sub(r"^(?=.)", "    ", body, flags=re.MULTILINE) + end + tail
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(FOLDER / "async_client.py"), "-"]
    text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    isort = [sys.executable, "-m", "ruff", "check", "--select", "I", "--fix", "--quiet", "--stdin-filename",
             str(FOLDER / "async_client.py"), "-"]  # fmt: skip
    return subprocess.run(isort, input=text, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    (FOLDER / "async_client.py").write_text(written())
