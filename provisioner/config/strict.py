"""Decode a TOML document into frozen structs and report every fault at once.

Each fault names the key, the value found and what is allowed, or suggests a similar key.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from provisioner.config.secrecy import may_hold_secret, show
from provisioner.contracts import SecretRef
from provisioner.contracts.redaction import redact

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


@dataclass(slots=True)
class Faults:
    """The faults of one file. ``origin`` names the file in every line."""

    origin: str
    lines: list[str] = field(default_factory=list)

    def add(self, path: str, text: str) -> None:
        self.lines.append(": ".join(filter(None, (self.origin, path, text))))


def decode_struct(data: object, struct: type[S], path: str, faults: Faults) -> S | None:
    """Return ``data`` as ``struct``, or None after adding each fault to ``faults``."""
    if not isinstance(data, Mapping):
        faults.add(path, f"found {show(data)}, allowed: a table")
        return None
    values, wrong = decode_values(data, struct, path, faults)
    return _construct(struct, values, path, wrong, faults)


def decode_values(
    data: Mapping[str, object], struct: type[msgspec.Struct], path: str, faults: Faults
) -> tuple[dict[str, Any], set[str]]:
    """Return the values of a struct's fields that are right, by field name, and the keys whose values are wrong.

    Adds each fault to ``faults``.
    """
    known = {info.encode_name: info for info in msgspec.structs.fields(struct)}
    hints = typing.get_type_hints(struct, include_extras=True)
    wrong: set[str] = set()
    for key in data:
        if key not in known:
            faults.add(_join(path, key), _unknown_key(key, known))
            wrong.update([key, *_similar(key, known)])
    values: dict[str, Any] = {}
    for key, info in known.items():
        before = len(faults.lines)
        if key in data:
            values[info.name] = _decode_value(data[key], hints[info.name], _join(path, key), faults)
        elif info.required:
            faults.add(_join(path, key), f"is missing; allowed: {_type_names(hints[info.name])}")
        if len(faults.lines) > before:
            wrong.add(key)
            values.pop(info.name, None)
    return values, wrong


def _construct(struct: type[S], values: dict[str, Any], path: str, wrong: set[str], faults: Faults) -> S | None:
    """Return the struct after its own checks.

    If the values of some keys are wrong, the checks run with their defaults, and what they say about these keys is
    left out. They cannot run without a required value.
    """
    if wrong and any(info.required and info.name not in values for info in msgspec.structs.fields(struct)):
        return None
    try:
        made = struct(**values)
    except ValueError as error:  # from the struct's own __post_init__
        for fault in getattr(error, "faults", None) or (str(error),):
            if wrong.isdisjoint(re.findall(r"\w+", fault)):
                faults.add(path, redact(fault))
        return None
    return None if wrong else made


def _decode_value(value: object, kind: Any, path: str, faults: Faults) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict and isinstance(value, Mapping):
        return {key: _decode_value(item, arguments[1], _join(path, key), faults) for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_decode_value(item, arguments[0], f"{path}[{number}]", faults) for number, item in enumerate(value)]
    nested = _struct_in(kind) if origin not in {dict, list} else None
    if nested is not None and isinstance(value, Mapping):
        return decode_struct(value, nested, path, faults)
    try:
        return msgspec.convert(value, kind, dec_hook=parse_hook)
    except msgspec.ValidationError as error:
        secret = may_hold_secret(path.rpartition(".")[2]) or _holds_secrets(kind)
        faults.add(path, f"found {show(value, secret=secret)}, {_allowed(str(error), kind)}")
        return None


def _holds_secrets(kind: Any) -> bool:
    """Return whether the type is or contains ``SecretRef``."""
    return kind is SecretRef or any(map(_holds_secrets, typing.get_args(kind)))


def parse_hook(kind: type[T], value: object) -> T:
    """Decode one of our value types for msgspec. Its ``parse`` raises ValueError saying what is allowed."""
    parse = getattr(kind, "parse", None)
    if parse is None:
        raise NotImplementedError
    return typing.cast("T", parse(value))


def _unknown_key(key: str, known: Mapping[str, object]) -> str:
    close = _similar(key, known)
    hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(sorted(known)) or 'nothing'}"
    return f"unknown key; {hint}"


def _similar(key: str, known: Mapping[str, object]) -> list[str]:
    return difflib.get_close_matches(key, known, n=1, cutoff=0.6)


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    """Return the struct in ``X``, ``X | None`` or ``Annotated[X, ...]``."""
    for candidate in (kind, *typing.get_args(kind)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _allowed(message: str, kind: Any) -> str:
    """Rewrite msgspec's message to say what is allowed."""
    message = message.split(" - at `", maxsplit=1)[0]
    if message.startswith("Expected"):
        wanted = message.removeprefix("Expected ").split(", got")[0]
        return "allowed: " + re.sub(r"`([^`]+)`", lambda found: _plain_text(found[1]), wanted)
    if message.startswith("Invalid enum value"):
        return f"allowed: {', '.join(show(value) for value in _choices(kind))}"
    return f"allowed: {message}" if message.startswith(("a ", "an ")) else message


def _plain_text(types: str) -> str:
    """Translate msgspec's type names (``int | null``) for a user who writes TOML."""
    return " or ".join(_TYPE_NAMES.get(name, name) for name in types.split(" | ") if name != "null")


def _choices(kind: Any) -> list[object]:
    """Return the values of a Literal, also of one nested in another type."""
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    return [value for inner in typing.get_args(kind) for value in _choices(inner)]


def _type_names(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind)).replace("str", "a string", 1)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
