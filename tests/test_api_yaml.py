"""Tests that api.yaml is a valid OpenAPI document and that its examples match their schemas."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from openapi_schema_validator import OAS30Validator, oas30_format_checker
from openapi_spec_validator import validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

from tests.provisioner.api.events_client import parse

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "api.yaml").read_text()
DOCUMENT = yaml.load(TEXT, yaml.CSafeLoader)
REGISTRY = Registry().with_resource("urn:api", Resource(contents=DOCUMENT, specification=DRAFT4))
METHODS = ("get", "put", "post", "delete", "patch", "head", "options", "trace")


def resolve(node):
    while "$ref" in node:
        found = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def operations():
    for path, item in DOCUMENT["paths"].items():
        for method in (name for name in METHODS if name in item):
            yield path, method, item[method]


def bodies():
    """Yield (where, schema, example) for every example of every request and response."""
    for path, method, operation in operations():
        places = {"request": operation["requestBody"]} if "requestBody" in operation else {}
        places |= {status: resolve(response) for status, response in operation["responses"].items()}
        for place, node in places.items():
            for media in node.get("content", {}).values():
                for name, example in media["examples"].items():
                    yield f"{method} {path} {place} {name}", media["schema"], resolve(example)["value"]


BODIES = list(bodies())


def faults(schema, value):
    pointed = {"$ref": "urn:api" + schema["$ref"]} if "$ref" in schema else schema
    validator = OAS30Validator(pointed, registry=REGISTRY, format_checker=oas30_format_checker)
    return [error.message for error in validator.iter_errors(value)]


def test_document_is_valid_openapi():
    assert DOCUMENT["openapi"] == "3.0.3"
    validate(DOCUMENT)


@pytest.mark.parametrize(("schema", "value"), [body[1:] for body in BODIES], ids=[body[0] for body in BODIES])
def test_example_matches_schema(schema, value):
    assert faults(schema, value) == []


def test_no_key_without_value():
    """An unquoted comma in a flow mapping would create one."""
    assert not [where for where, node in nodes(DOCUMENT) if None in node.values()]


def test_wrong_example_is_rejected():
    """The check of examples covers references, formats and enums."""
    job = {"job_id": "x", "status": "done", "created_at": "yesterday", "updated_at": "2024-01-14T10:30:00Z"}
    job |= {"request": {"image_url": "https://x/y"}, "attempts": 1}
    assert len(faults({"$ref": "#/components/schemas/Job"}, job)) == 3


def test_error_example_code_matches_response():
    for where, _, value in BODIES:
        status = where.split()[2]
        if status.startswith(("4", "5")):
            assert value["code"] == int(status), where


def test_every_response_has_request_id():
    for path, method, operation in operations():
        for status, response in operation["responses"].items():
            assert "X-Request-ID" in resolve(response)["headers"], (path, method, status)


def test_api_paths_need_credential():
    """The empty requirement is a client certificate, so it stands beside the tokens everywhere under /api."""
    for path, method, operation in operations():
        security = operation.get("security", DOCUMENT["security"])
        if path.startswith("/api/"):
            assert security == [{}, {"apiToken": []}, {"bearerToken": []}], (path, method)
        else:
            assert not security or path == "/metrics", (path, method)
        if path.startswith("/api/"):
            assert {"401", "403", "429", "500", "503"} <= operation["responses"].keys(), (path, method)


def nodes(node, where="#"):
    """Every mapping of the document, with its place."""
    if isinstance(node, dict):
        yield where, node
        for name, part in node.items():
            yield from nodes(part, f"{where}/{name}")
    elif isinstance(node, list):
        for number, part in enumerate(node):
            yield from nodes(part, f"{where}/{number}")


def test_every_number_has_a_format():
    """Without one, clients for Java, Go and Rust read a size into 32 bits and fail at 2 GiB, and Go reads a float32."""
    formats = {"integer": {"int32", "int64"}, "number": {"double"}}
    parts = {name: part for name, part in DOCUMENT["components"].items() if name != "examples"}
    found = [*nodes(parts), *nodes(DOCUMENT["paths"])]
    numbers = {where: node for where, node in found if str(node.get("type")) in formats}
    assert len(numbers) >= 40
    assert not [where for where, node in numbers.items() if node.get("format") not in formats[node["type"]]]


def test_sizes_are_int64():
    found = {
        where: node
        for where, node in nodes(DOCUMENT["components"]["schemas"])
        if node.get("type") == "integer" and re.search(r"size|bytes|eta|seconds", where.rpartition("/")[2])
    }
    assert len(found) >= 9
    assert {where for where, node in found.items() if node.get("format") != "int64"} == set()


def test_every_operation_has_one_result():
    """Generators for Java, Go and Rust give a method the type of one success response, and lose the others."""
    for path, method, operation in operations():
        fine = [resolve(response) for status, response in operation["responses"].items() if status < "300"]
        schemas = [body["schema"] for response in fine for body in response.get("content", {}).values()]
        assert all(schema == schemas[0] for schema in schemas), (path, method)


def test_every_object_has_a_name():
    """Some generators have only anonymous types for an object inside another one, others invent a name."""
    inner = [
        where
        for where, node in nodes(DOCUMENT["components"]["schemas"])
        if "properties" in node and where.count("/") > 1 and "/allOf/" not in where
    ]
    assert inner == []
    assert not [where for where, node in nodes(DOCUMENT["paths"]) if "properties" in node]


def test_same_values_have_one_enum():
    """An enum that is written twice becomes two types."""
    enums = [node["enum"] for _, node in nodes(DOCUMENT["components"]["schemas"]) if "enum" in node]
    several = [tuple(sorted(values)) for values in enums if len(values) > 1]
    assert len(several) == len(set(several))


def test_request_id_is_no_argument():
    """A parameter of every operation would be an argument of every generated method."""
    named = [node for _, node in nodes(DOCUMENT) if node.get("in") == "header"]
    names = {node["name"] for node in named if "type" not in node}
    assert names == {"Idempotency-Key", "Last-Event-ID", "Content-Range"}


def test_request_fields_have_no_default():
    """Generators take a field with a default for one that is always there."""
    bodies = [operation["requestBody"] for _, _, operation in operations() if "requestBody" in operation]
    json = [body["content"]["application/json"] for body in bodies if "application/json" in body["content"]]
    schemas = [resolve(body["schema"]) for body in json]
    assert len(schemas) >= 4
    for schema in schemas:
        assert schema["additionalProperties"] is False
        assert not [where for where, node in nodes(schema) if node.keys() & {"default", "nullable"}]


def test_every_operation_may_answer_400():
    for path, method, operation in operations():
        assert "400" in operation["responses"], (path, method)
        assert ("408" in operation["responses"]) == ("requestBody" in operation), (path, method)


def test_requests_reject_unknown_fields():
    assert faults({"$ref": "#/components/schemas/FetchRequest"}, {"image_url": "https://x/y", "cheksum": "z"})


def test_no_unused_component():
    named = [f"#/components/{kind}/{name}" for kind, parts in DOCUMENT["components"].items() for name in parts]
    used = set(re.findall(r'"(#/components/[^"]+)"', TEXT))
    used |= {f"#/components/securitySchemes/{name}" for entry in DOCUMENT["security"] for name in entry}
    assert set(named) == used


def test_operation_ids_are_unique():
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids))


def test_example_events_match_their_schemas():
    schemas = DOCUMENT["components"]["schemas"]["EventStream"]["x-events"]
    seen = set()
    for name in ("JobEvents", "AllEvents"):
        blocks = DOCUMENT["components"]["examples"][name]["value"].split("\n\n")
        for event in filter(None, map(parse, filter(None, blocks))):
            assert faults(schemas[event.kind], event.data) == [], event.kind
            seen.add(event.kind)
    assert {"snapshot", "job.pending", "job.running", "job.progress", "job.completed", "cache.added", "end"} <= seen
