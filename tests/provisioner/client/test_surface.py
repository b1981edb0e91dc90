"""The client has each operation of api.yaml, types its objects, and is the same for threads and for coroutines."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path
from typing import is_typeddict

import pytest
import yaml

from contrib.dev.async_client import FOLDER, written
from provisioner.client import AsyncClient, Client, types

API = yaml.load((Path(__file__).resolve().parents[3] / "api.yaml").read_text(), yaml.CSafeLoader)
SCHEMAS = API["components"]["schemas"]
METHODS = {
    "submitJob": "submit",
    "planJob": "plan",
    "getJob": "job",
    "listJobs": "jobs",
    "cancelJob": "cancel",
    "retryJob": "retry",
    "watchJob": "events",
    "watchEvents": "events",
    "listVolumes": "volumes",
    "removeVolume": "remove_volume",
    "resizeVolume": "resize_volume",
    "adoptVolume": "adopt_volume",
    "listReplacedVolumes": "replaced_volumes",
    "restoreVolume": "restore_volume",
    "removeReplacedVolume": "remove_replaced_volume",
    "listNamedImages": "images",
    "getNamedImage": "image",
    "listCachedImages": "cached_images",
    "fetchImage": "fetch_image",
    "removeCachedImage": "remove_image",
    "pinImage": "pin_image",
    "unpinImage": "unpin_image",
    "verifyImage": "verify_image",
    "pruneCache": "prune_cache",
    "listTargets": "targets",
    "listSources": "sources",
    "whoami": "whoami",
    "getHealth": "health",
    "getReadyz": "ready",
}
# Uploads go on after a cut, which `lvp image push` does; the others are for monitoring and orchestrators.
LEFT_OUT = {"uploadImage", "getUpload", "getHealthz", "getLivez", "getMetrics"}


def public(cls):
    return {name: one for name, one in vars(cls).items() if not name.startswith("_") and callable(one)}


def test_each_operation_has_a_method():
    operations = {
        operation["operationId"]
        for path in API["paths"].values()
        for method, operation in path.items()
        if method != "parameters"
    }
    assert operations == METHODS.keys() | LEFT_OUT
    assert set(METHODS.values()) | {"close", "follow", "wait"} == public(Client).keys()


def test_async_client_is_written_anew():
    assert (FOLDER / "async_client.py").read_text() == written(), "run contrib/dev/async_client.py"


def test_both_clients_have_the_same_methods():
    one, other = public(Client), public(AsyncClient)
    assert one.keys() - {"close"} == other.keys() - {"aclose"}
    for name in one.keys() - {"close"}:
        assert inspect.signature(one[name]).parameters == inspect.signature(other[name]).parameters, name
        assert inspect.getdoc(one[name]) == inspect.getdoc(other[name]), name


@pytest.mark.parametrize("name", [name for name, one in vars(types).items() if is_typeddict(one)])
def test_type_has_the_fields_of_its_schema(name):
    cls, schema = getattr(types, name), SCHEMAS[name]
    assert cls.__required_keys__ == set(schema.get("required", ()))
    assert cls.__required_keys__ | cls.__optional_keys__ == schema["properties"].keys()


@pytest.mark.parametrize("name", ["JobStatus", "Stage", "ProvisionedBy"])
def test_choices_are_those_of_the_schema(name):
    assert list(typing.get_args(getattr(types, name))) == SCHEMAS[name]["enum"]
