"""Tests of the page's files: open to all, guarded by headers, kept by browsers only as long as they are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import provisioner
from provisioner.api.page import page_files
from provisioner.config import ServerSettings
from tests.provisioner.api.conftest import running
from tests.provisioner.api.document import refused

SOURCES = Path(provisioner.__file__).parent / "api" / "static"
FILES = sorted(file.name for file in SOURCES.iterdir())


def paths():
    return ["/", "/page/api.yaml", *(f"/page/{name}" for name in FILES)]


async def test_files_are_open_to_all(service):
    for path in paths():
        response = await service.call("GET", path, role=None)
        assert response.status_code == 200, path
        assert (await service.call("HEAD", path, role=None)).status_code == 200
        assert await response.get_data(), path


async def test_security_headers(service):
    for path in paths():
        headers = (await service.call("GET", path, role=None)).headers
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["form-action"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-cache"
        assert "Set-Cookie" not in headers
        assert "Access-Control-Allow-Origin" not in headers


async def test_unchanged_file_is_not_sent_again(service):
    first = await service.call("GET", "/page/main.js", role=None)
    etag = first.headers["ETag"]
    again = await service.call("GET", "/page/main.js", role=None, headers={"If-None-Match": f'"other", {etag}'})
    assert again.status_code == 304
    assert again.headers["ETag"] == etag
    assert await again.get_data() == b""
    other = await service.call("GET", "/page/main.js", role=None, headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


async def test_switched_off(folder):
    async with running(folder, server=ServerSettings(page=False)) as service:
        for path in paths():
            await refused(await service.call("GET", path, role=None), 404, "not found", "nothing at this path")
        assert (await service.call("GET", "/api/v1/whoami", role="viewer")).status_code == 200


@pytest.mark.parametrize(
    "name", ["absent.js", "..%2fpage.py", "%2e%2e", "..%5cpage.py", "index.html%00", "__init__.py"]
)
async def test_other_files_are_not_served(service, name):
    await refused(await service.call("GET", f"/page/{name}", role=None), 404, "not found", "nothing at this path")


async def test_api_responses_are_not_kept(service):
    assert (await service.call("GET", "/api/v1/whoami")).headers["Cache-Control"] == "no-store"


def test_all_files_are_served():
    assert sorted(page_files()) == sorted([*FILES, "api.yaml"])


async def test_api_document_is_served(service):
    response = await service.call("GET", "/page/api.yaml", role=None)
    assert await response.get_data() == (Path(__file__).parents[3] / "api.yaml").read_bytes()
    assert response.content_type == "application/yaml"


@pytest.mark.parametrize("name", FILES)
def test_no_markup_from_text_and_nothing_from_outside(name):
    """Text never becomes markup or code, and no other site is asked. No file loads what does not exist."""
    text = (SOURCES / name).read_text()
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc|DOMParser|" + (
        r"localStorage|sessionStorage|indexedDB|document\.cookie|createContextualFragment|setHTML| on\w+=\"| style=\""
    )
    assert re.findall(forbidden, text) == []
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    loaded = re.findall(r"from \"\./([\w.]+)\"", text) + re.findall(r"(?:src|href)=\"page/([\w.]+)\"", text)
    assert set(loaded) <= set(FILES)


def test_modules_are_short():
    assert max(len((SOURCES / name).read_text().splitlines()) for name in FILES if name.endswith(".js")) < 300
