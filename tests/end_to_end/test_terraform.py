"""The Terraform provider against a real daemon: its Go tests speak the provider protocol as Terraform's core does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from contrib.clients.service import running
from contrib.clients.toolchain import digest, made, run
from tests.minio.build import go

pytestmark = pytest.mark.slow
PROVIDER = Path(__file__).resolve().parents[2] / "contrib" / "terraform"


def built() -> Path:
    """Return the provider's tests as a program; it is built if a source has changed."""
    tool = go()
    version = subprocess.run([tool, "env", "GOVERSION"], check=True, capture_output=True, text=True).stdout.strip()
    sources = sorted(path for path in PROVIDER.iterdir() if path.suffix in {".go", ".mod", ".sum"})
    with made("terraform", f"{digest(*sources)}-{version}") as (folder, new):
        if new:
            run(tool, "vet", ".", cwd=PROVIDER)
            run(tool, "test", "-c", "-o", folder / "provider.test", ".", cwd=PROVIDER)
        return folder / "provider.test"


def test_provider(tmp_path):
    with running(tmp_path) as service:
        config = service.daemon.folder / "config.toml"
        token = service.daemon.lvp("token", "create", "terraform", "--role", "admin", "--config", config).out.split()[0]
        environment = {
            **os.environ,
            "LVP_URL": service.daemon.url,
            "LVP_TOKEN": token,
            "LVP_CA": str(service.pki / "ca.pem"),
            "TEST_IMAGE_URL": service.image_url,
            "TEST_HELD_URL": service.held_url,
            "TEST_CHECKSUM": service.checksum,
        }
        command = [built(), "-test.timeout=5m", "-test.v"]
        done = subprocess.run(command, cwd=PROVIDER, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "--- PASS: TestLifecycle" in done.stdout
        assert not list(service.daemon.volumes.glob("tf-*")), "each test removes its volumes"
