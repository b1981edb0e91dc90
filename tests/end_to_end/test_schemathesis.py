"""Sends requests generated from api.yaml to a running daemon: every response conforms to the document."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import requests
import schemathesis
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # schemathesis and its dependencies warn
]
# ``make fuzz`` runs longer, with other examples. Two dozen routes, some 40 ms per example: 60 examples take a minute.
MINUTES = float(os.environ.get("LVP_FUZZ_MINUTES", "0"))
schema = schemathesis.openapi.from_path(Path(__file__).parents[2] / "api.yaml")
# A response without an end; test_events.py reads it.
schema = schema.exclude(operation_id="watchEvents")


@pytest.fixture(scope="module")
def target(tmp_path_factory, images):
    """Run a daemon with an admin's token, images to download, and a job in its history."""
    from provisioner.auth.tokens import TokenFile
    from tests.end_to_end.daemon import Daemon, plain_config
    from tests.servers.images import image_server

    folder = tmp_path_factory.mktemp("schemathesis") / "d"
    # Some generated requests have wrong credentials, so avoid the limit of failed authentications.
    daemon = Daemon(folder, plain_config(folder, auth={"max_failures": 1_000_000})).start()
    token = TokenFile(folder / "state" / "tokens.json").create("admin", "admin")
    with image_server(images["zlib.qcow2"].file.parent) as server:
        daemon.job_ended(daemon.submit(server.of("zlib.qcow2"), "web-01"))
        yield daemon, token
    assert daemon.process.poll() is None
    assert daemon.stop() == 0
    assert not daemon.events("a request failed")
    assert not daemon.events("a connection failed")


@schema.parametrize()
@hypothesis.settings(
    max_examples=max(30, int(60 * MINUTES)),
    derandomize=not MINUTES,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_response_conforms_to_document(case, target):
    daemon, token = target
    # Blank optional fields count as absent, which a schema cannot say without being read differently by generators.
    blank = isinstance(case.body, dict) and any(value in (None, "") for value in case.body.values())
    with requests.Session() as session:
        session.trust_env = False
        case.call_and_validate(
            base_url=daemon.url,
            session=session,
            headers={"X-API-Token": token},
            timeout=60,
            # A request that fits the schema may still be rejected, for example for a url of no configured source.
            excluded_checks=[positive_data_acceptance, *([negative_data_rejection] if blank else [])],
        )
