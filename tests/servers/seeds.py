"""Reads cloud-init seeds with the tools of others: isoinfo, blkid, and cloud-init's own datasource."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("user-data", "meta-data", "network-config")
# Runs in Debian's Python, which has cloud-init's modules; the seed's files are where its datasource looks first.
_READ = """
import json, sys
from cloudinit import helpers
from cloudinit.sources.DataSourceNoCloud import DataSourceNoCloud
source = DataSourceNoCloud({}, None, helpers.Paths({"cloud_dir": sys.argv[1], "run_dir": sys.argv[1]}))
assert source._get_data(), "cloud-init found no seed"
print(json.dumps({"user_data": source.userdata_raw.decode(), "meta_data": source.metadata,
                  "network_config": source.network_config}))
"""


def run(*args: object) -> str:
    return subprocess.run([*map(str, args)], check=True, capture_output=True, text=True).stdout


def files_of(seed: Path, names: str) -> dict[str, str]:
    """Return the files in a seed. ``names``: ``-R`` for its Rock Ridge names, ``-J`` for its Joliet names."""
    listed = run("isoinfo", names, "-f", "-i", seed).split()
    return {name.lstrip("/"): run("isoinfo", names, "-x", name, "-i", seed) for name in listed}


def label_of(seed: Path) -> tuple[str, str]:
    """Return the file system's type and label, as the guest's udev finds them."""
    found = dict(line.partition("=")[::2] for line in run("blkid", "-p", "-o", "export", seed).splitlines())
    return found["TYPE"], found["LABEL"]


def read_by_cloud_init(seed: Path, folder: Path) -> dict:
    """Return what cloud-init's NoCloud datasource makes of a seed. ``folder`` must be empty."""
    where = folder / "seed" / "nocloud"
    where.mkdir(parents=True)
    for name, text in files_of(seed, "-R").items():
        (where / name).write_text(text)
    return json.loads(run("/usr/bin/python3", "-c", _READ, folder))
