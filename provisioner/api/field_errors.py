"""Messages for invalid fields and query parameters: msgspec's findings in the words of the API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import msgspec

if TYPE_CHECKING:
    from enum import Enum

_KINDS = {"int": "a whole number", "str": "text", "float": "a fraction", "bool": "true or false", "null": "null",
          "array": "a list", "object": "an object"}  # fmt: skip


def describe(message: str, kind: type[msgspec.Struct]) -> str:
    """Return one sentence that begins with the field's name, from msgspec's message about decoding a ``kind``."""
    if within := re.fullmatch(r"(Object .*) - at `\$\.(\w+)`", message, re.DOTALL):
        return f"{within[2]}: {describe(within[1], _struct(within[2], kind))}"
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", message):
        return f"{missing[1]} is required"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL):
        return f"unknown field {unknown[1]!r}; allowed: {', '.join(kind.__struct_fields__)}"
    if placed := re.fullmatch(r"(.*) - at `\$\.(\w+)`", message, re.DOTALL):
        return f"{placed[2]} {_must(placed[1], placed[2], kind)}"
    if inside := re.fullmatch(r"(.*) - at `\$\.(\w+)\.(\w+)`", message, re.DOTALL):
        return f"{inside[2]}.{inside[3]} {_must(inside[1], inside[3], _struct(inside[2], kind))}"
    return f"the body is not valid: {message}".replace("`", "")


def _must(message: str, field: str, kind: type[msgspec.Struct]) -> str:
    if bound := re.fullmatch(r"Expected `int` (>=|<=) (-?\d+)(?:\.0)?", message):
        return f"must be a whole number of at {'least' if bound[1] == '>=' else 'most'} {bound[2]}"
    if length := re.fullmatch(r"Expected `str` of length (>=|<=) (\d+)", message):
        return "must not be empty" if length[1] == ">=" else f"must be at most {length[2]} characters"
    if wrong := re.fullmatch(r"Expected `(\w+)(?: \| null)?`, got `(\w+)`", message):
        return f"must be {_KINDS.get(wrong[1], wrong[1])}, not {_KINDS.get(wrong[2], wrong[2])}"
    if message.startswith("Invalid enum value"):
        return f"must be one of {', '.join(_choices(field, kind))}"
    if message.startswith("Expected `str` matching regex"):
        return f"must be {_description(field, kind)}"
    if message == "Integer value out of range":
        return "is too large"
    return f"is not valid: {message}".replace("`", "")


def _struct(field: str, kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Return the struct that the field holds."""
    hint = _hint(field, kind)
    return next(one for one in (hint, *get_args(hint)) if isinstance(one, type) and issubclass(one, msgspec.Struct))


def _hint(field: str, kind: type[msgspec.Struct]) -> Any:
    return next(one.type for one in msgspec.structs.fields(kind) if one.name == field)


def _description(field: str, kind: type[msgspec.Struct]) -> str:
    """Return what a field with a pattern must be: each such type has a description."""
    hint = _hint(field, kind)
    metas = [meta for one in (hint, *get_args(hint)) for meta in getattr(one, "__metadata__", ())]
    return str(next(meta.description for meta in metas if meta.description))


def _choices(field: str, kind: type[msgspec.Struct]) -> list[str]:
    hint = _hint(field, kind)
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    kinds: list[type[Enum]] = [one for one in (hint, *get_args(hint)) if hasattr(one, "__members__")]
    return [str(member.value) for member in kinds[0]]
