"""Url patterns find the newest image in a listing: numbers are compared as numbers, release candidates left out."""

import pytest

from provisioner.images import url_pattern

FOLDER = "https://images.example/pub/"
NGINX = """<html><head><title>Index of /pub/</title></head><body><h1>Index of /pub/</h1><hr><pre><a href="../">../</a>
<a href="9/">9/</a>  01-Jan-2026 10:00  -
<a href="10/">10/</a> 01-Feb-2026 10:00  -
<a href="image%2B1.qcow2">image+1.qcow2</a>
</pre></body></html>"""
APACHE = """<table><tr><th><a href="?C=N;O=D">Name</a></th></tr>
<tr><td><a href="/">Parent Directory</a></td></tr>
<tr><td><a href="/pub/9/">9/</a></td></tr>
<tr><td><a href="https://images.example/pub/10/">10/</a></td></tr>
<tr><td><a href="https://elsewhere.example/11/">11/</a></td></tr>
<tr><td><a href="a%2Fb">a/b</a></td></tr></table>"""


@pytest.mark.parametrize(
    ("html", "names"),
    [(NGINX, ["9", "10", "image+1.qcow2"]), (APACHE, ["9", "10"]), ("not html", []), ("<a href=", [])],
)
def test_names_in_listing(html, names):
    assert url_pattern.names_in_listing(html, FOLDER) == names


@pytest.mark.parametrize(
    ("names", "match", "newest"),
    [
        (["a-9.qcow2", "a-10.qcow2"], {}, "10"),
        (["a-1.9.qcow2", "a-1.10.qcow2", "a-1.2.3.qcow2"], {}, "1.10"),
        (["a-20260101-1811.qcow2", "a-20251231-2359.qcow2"], {}, "20260101-1811"),
        (["a-2.qcow2", "a-3-rc1.qcow2", "a-latest.qcow2", "a-4.qcow2.sha256"], {}, "2"),
        (["a-14.1.qcow2", "a-15.0.qcow2"], {"version": r"14\.[0-9]+"}, "14.1"),
        (["b-1.qcow2"], {}, None),
        ([], {}, None),
    ],
)
def test_newest_name(names, match, newest):
    found = url_pattern.newest(f"{FOLDER}a-{{version}}.qcow2", names, match)
    assert (found and found["version"]) == newest


def test_values_of_two_placeholders_are_compared_in_order():
    names = ["a-1-9.qcow2", "a-2-1.qcow2", "a-1-10.qcow2"]
    pattern = f"{FOLDER}a-{{release}}-{{build}}.qcow2"
    match = {"release": "[0-9]+", "build": "[0-9]+"}
    assert url_pattern.newest(pattern, names, match) == {"release": "2", "build": "1"}


def test_repeated_placeholder_has_one_value():
    pattern = "https://images.example/{version}/a-{version}.qcow2"
    assert url_pattern.folder(pattern) == "https://images.example/"
    assert url_pattern.fill(pattern, {"version": "7"}) == "https://images.example/7/a-7.qcow2"
    assert url_pattern.values_in(pattern, "https://images.example/7/a-7.qcow2", {}) == {"version": "7"}
    assert url_pattern.values_in(pattern, "https://images.example/7/a-8.qcow2", {}) is None


def test_dots_of_the_pattern_match_only_dots():
    assert url_pattern.newest(f"{FOLDER}a-{{version}}.qcow2", ["a-1xqcow2"], {}) is None
