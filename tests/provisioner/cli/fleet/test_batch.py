"""Tests of batch files: what they ask for, and every error with its line."""

from __future__ import annotations

import json
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from provisioner.cli.fleet.batch import BatchError, read_batch
from provisioner.cli.host_settings import Directory

TOML = '''\
[defaults]
image = "debian-12"
volume_size_gb = 20

[[volume]]
hosts = ["kvm-[1-2]"]
volume_name = "web-{host}"

[[volume]]   # another image
hosts = "kvm-3"
volume_name = "db"
image_url = "https://x.example/db.raw"
[volume.cloud_init]
user_data = """
[[volume]]
hosts = {host}
"""
[[volume]]
volume_name = "any"
'''
HOSTS = Directory({}, {})


@pytest.fixture
def read(tmp_path):
    """Return a function that reads a batch from a file; a list stands for JSON lines."""

    def read(content, name=None, default=None):
        is_toml = isinstance(content, str)
        file = tmp_path / (name or ("batch.toml" if is_toml else "batch.jsonl"))
        lines = content if is_toml else "\n".join(one if isinstance(one, str) else json.dumps(one) for one in content)
        file.write_text(lines)
        return read_batch(file, HOSTS.names, default)

    return read


@pytest.fixture
def errors(read):
    """Return a function that reads a batch and returns its errors as lines and messages."""

    def errors(content, **more):
        with pytest.raises(BatchError) as error:
            read(content, **more)
        assert error.value.status == 2
        *lines, last = error.value.message.split("\n")
        assert last == f"{len(lines)} error{'' if len(lines) == 1 else 's'}; nothing was sent"
        pairs = [line.split("batch", 1)[1].split(":", 2)[1:] for line in lines]
        return [(int(number), message.strip()) for number, message in pairs]

    return errors


def volume(name="a", hosts="kvm-1", **more):
    return {"hosts": hosts, "volume_name": name, "image": "debian-12", **more}


def test_toml(read):
    """In the file's order; defaults are below an entry's own fields, and a line in a text is no header."""
    wanted = read(TOML, default="x,y")
    assert [(one.line, one.host, one.body["volume_name"]) for one in wanted] == [
        (5, "kvm-1", "web-kvm-1"),
        (5, "kvm-2", "web-kvm-2"),
        (9, "kvm-3", "db"),
        (18, "x", "any"),
        (18, "y", "any"),
    ]
    assert wanted[0].body == {"image": "debian-12", "volume_size_gb": 20, "volume_name": "web-kvm-1"}
    assert wanted[2].body == {
        "volume_name": "db",
        "volume_size_gb": 20,
        "image_url": "https://x.example/db.raw",
        "cloud_init": {"user_data": "[[volume]]\nhosts = {host}\n"},
    }


def test_json_lines(read):
    wanted = read([volume(), "", volume("b-{host}", ["kvm-[1-2]"], priority=-3, target="fast")])
    assert [(one.line, one.host, one.body["volume_name"]) for one in wanted] == [
        (1, "kvm-1", "a"),
        (3, "kvm-1", "b-kvm-1"),
        (3, "kvm-2", "b-kvm-2"),
    ]
    assert wanted[1].body == {"volume_name": "b-kvm-1", "image": "debian-12", "priority": -3, "target": "fast"}


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"hosts":"a","volume_name":"v","image":"i"}\r\n',
        b"[[volume]]\r\nhosts='a'\r\nvolume_name='v'\r\nimage='i'",
    ],
)
def test_standard_input(monkeypatch, content):
    """The first character tells JSON from TOML; other systems' line ends and marks are fine."""
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(content)))
    assert [one.body for one in read_batch(Path("-"), HOSTS.names, None)] == [{"volume_name": "v", "image": "i"}]


def test_errors_of_two_lines(errors):
    lines = [volume(str(number)) for number in range(8)]
    lines[2] = {"hosts": "a", "volume_name": "x", "imag": "y"}
    lines[6] = '{"hosts": "a"'
    assert errors(lines) == [
        (3, "image or image_url is missing"),
        (3, "unknown field 'imag'; did you mean 'image'?"),
        (7, "this is not valid JSON: Expecting ',' delimiter (column 14)"),
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (volume(volume_size_gb="20"), "volume_size_gb must be a whole number of GiB, such as 20; found '20'"),
        (volume(volume_size_gb=0), "volume_size_gb must be a whole number"),
        (volume(volume_size_gb=True), "volume_size_gb must be a whole number"),
        (volume(volume_size_gb=1.5), "volume_size_gb must be a whole number"),
        (volume(priority=1001), "priority must be a whole number from -1000 to 1000"),
        (volume(name=""), "volume_name must be a non-empty string"),
        (volume(name="x" * 256), "volume_name must have at most 255 characters"),
        (volume(hosts=[]), "hosts must be a list of hosts"),
        (volume(hosts=[1]), "hosts must be a list of hosts"),
        (volume(hosts="kvm-[3-1]"), "the range 3-1 ends before it begins"),
        (volume(image_url="https://x/y"), "give image or image_url, not both"),
        ({"hosts": "a", "volume_name": "v"}, "image or image_url is missing"),
        ({"hosts": "a", "image": "v"}, "volume_name is missing"),
        ({"volume_name": "v", "image": "v"}, "hosts is missing, and --hosts is not given"),
        (volume(cloud_init="x"), "cloud_init must be a table with user_data; found 'x'"),
        (volume(cloud_init={"user_data": "x", "y": "z"}), "found 'y'"),
        (volume(cloud_init={"user_data": "x"}, user_data_file="y"), "give cloud_init or files of it, not both"),
        (volume(meta_data_file="y"), "user_data_file is missing"),
        (volume(user_data_file="none.yaml"), "none.yaml cannot be read: No such file or directory"),
        ([1], "a line must be an object"),
        ('{"hosts": "a", "hosts": "b"}', "'hosts' is there twice"),
        ('{"hosts": NaN}', "NaN is not a value"),
        ("[" * 100_000, "this is not valid JSON"),
    ],
)
def test_error_of_an_entry(errors, fields, words):
    found = errors([volume("first"), fields])
    assert [(number, words in message) for number, message in found] == [(2, True)]


def test_duplicates(errors):
    """The same volume of a host twice, also by overlapping patterns; other targets are other volumes."""
    found = errors([volume("v", "kvm-[1-3]"), volume("v", "kvm-2,kvm-3"), volume("v", "kvm-1", target="fast")])
    assert found == [
        (2, "the volume 'v' on kvm-2 is already that of line 1"),
        (2, "the volume 'v' on kvm-3 is already that of line 1"),
    ]


def test_toml_errors(errors):
    """Each at the line of its field, those of the defaults once; also beside an entry that is no TOML."""
    content = TOML.replace("volume_size_gb = 20", "size = 20").replace('"kvm-3"', "[1]").replace('"any"', '"any')
    found = errors(content)
    assert [number for number, _ in found] == [3, 10, 19]
    assert "unknown field 'size'" in found[0][1]
    assert "this is not valid TOML" in found[2][1]


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("x = 1", 1, "unknown table or field 'x'"),
        ("\n[volumes]\nx = 1", 2, "unknown table or field 'volumes'"),
        ("volume = [{volume_name = 'a'}]", 1, "unknown table or field 'volume'"),
        ("defaults = 3", 1, "defaults must be a table"),
        ("[[volume]]\nhosts='a'\nvolume_name='v'\nimage='i'\n[defaults]\nimage='j'", 1, "must stand before the first"),
        ("", 0, "the batch has no volumes"),
        ("[defaults]\nimage = 'x'", 0, "the batch has no volumes"),
        ('[[volume]]\nx = """', 2, "this is not valid TOML"),
    ],
)
def test_toml_invalid(read, content, line, words):
    with pytest.raises(BatchError, match=f"batch.toml:{line}: .*{words}" if line else f"batch.toml: {words}"):
        read(content)


def test_not_text(tmp_path):
    file = tmp_path / "batch.toml"
    file.write_bytes(b"x = 1\n\xff")
    with pytest.raises(BatchError, match=r"batch\.toml:2: this is not UTF-8 text"):
        read_batch(file, HOSTS.names, None)
