import pytest

from lvp_source_oci import OciSettings, OciSource
from provisioner.contracts import BackEndContext
from tests.servers.oci_registry import registry


@pytest.fixture(scope="session")
def running(tmp_path_factory):
    with registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="session")
def guarded(tmp_path_factory):
    """Run a registry that asks for a login."""
    with registry(tmp_path_factory.mktemp("guarded"), login=True) as server:
        yield server


@pytest.fixture
def source_of(tmp_path):
    """Return a function that makes a source for a registry."""

    def make(host, **settings):
        table = {"registries": [host], "plain_http": True, **settings}
        return OciSource(OciSettings(**table), BackEndContext("lab", tmp_path))

    return make
