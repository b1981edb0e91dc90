"""Checks responses against api.yaml."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from openapi_schema_validator import OAS30Validator, oas30_format_checker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

from provisioner.contracts.reasons import REASONS

DOCUMENT = yaml.load((Path(__file__).parents[3] / "api.yaml").read_text(), yaml.CSafeLoader)
REGISTRY = Registry().with_resource("urn:api", Resource(contents=DOCUMENT, specification=DRAFT4))
UUID = r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}"


async def held(response, schema, status=200):
    """Check the response's status and schema; return its body."""
    assert response.content_type == "application/json"
    body = await response.get_json()
    assert response.status_code == status, body
    pointer = {"$ref": f"urn:api#/components/schemas/{schema}"}
    validator = OAS30Validator(pointer, registry=REGISTRY, format_checker=oas30_format_checker)
    assert [fault.message for fault in validator.iter_errors(body)] == []
    return body


async def refused(response, status, category, message):
    """Check that the response is an error with this status and category; ``message`` is a pattern. Return its body."""
    body = await held(response, "ErrorResponse", status)
    assert body.keys() == {"error", "message", "code", "reason"}
    assert body["reason"] in REASONS
    assert (body["error"], body["code"]) == (category, status)
    assert re.search(message, body["message"]), body["message"]
    return body
