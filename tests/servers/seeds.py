"""Reads cloud-init seeds with the tools of others: isoinfo, blkid, and cloud-init's own datasource."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.guest.harness.cache import entry, key_of

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


def run(*args: object, **options: object) -> str:
    return subprocess.run([*map(str, args)], check=True, capture_output=True, text=True, **options).stdout


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
    modules = entry("cloud-init", key_of(Path("/etc/os-release").read_bytes()), _unpack_cloud_init)
    environment = os.environ | {"PYTHONPATH": str(modules / "usr/lib/python3/dist-packages")}
    return json.loads(run("/usr/bin/python3", "-c", _READ, folder, env=environment))


def _unpack_cloud_init(folder: Path) -> None:
    """Unpack Debian's package. It is not installed: it would configure this machine at its next start."""
    run("apt-get", "download", "--quiet", "cloud-init", cwd=folder)
    (package,) = folder.glob("cloud-init_*.deb")
    run("dpkg-deb", "--extract", package, folder)
    package.unlink()
