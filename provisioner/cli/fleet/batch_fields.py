"""The fields of a batch's entry: which there are, their types, and the request that they make."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.exit_status import CliError, ExitStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

# Of the API: whole numbers in their range, texts in their length. The server checks the rest.
_MOST_GIB, _MOST_PRIORITY, _LONGEST = 2**33 - 1, 1000, 255


def _is_text(value: object) -> str | None:
    if isinstance(value, str) and value:
        return None if len(value) <= _LONGEST else f"must have at most {_LONGEST} characters"
    return "must be a non-empty string"


def _is_url(value: object) -> str | None:
    return None if isinstance(value, str) and "/" in value else "must be a url"


def _is_size(value: object) -> str | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_GIB
    return None if good else "must be a whole number of GiB, such as 20"


def _is_priority(value: object) -> str | None:
    good = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST_PRIORITY
    return None if good else f"must be a whole number from -{_MOST_PRIORITY} to {_MOST_PRIORITY}"


def _is_hosts(value: object) -> str | None:
    parts = value if isinstance(value, list) else [value]
    good = bool(parts) and all(isinstance(part, str) and part for part in parts)
    return None if good else 'must be a list of hosts, such as ["kvm-[01-20]"] or "kvm-01,kvm-02"'


def _is_cloud_init(value: object) -> str | None:
    names = ("user_data", "meta_data", "network_config")
    if not isinstance(value, dict) or "user_data" not in value:
        return "must be a table with user_data"
    wrong = [name for name, text in value.items() if name not in names or not isinstance(text, str)]
    return f"must have only texts under {', '.join(names)}; found {wrong[0]!r}" if wrong else None


_FILES = {"user_data_file": "user_data", "meta_data_file": "meta_data", "network_config_file": "network_config"}
# Field -> what is wrong with a value, or None.
_CHECKS: dict[str, Callable[[object], str | None]] = {
    "hosts": _is_hosts,
    "volume_name": _is_text,
    "image": _is_text,
    "image_url": _is_url,
    "volume_size_gb": _is_size,
    "image_type": _is_text,
    "target": _is_text,
    "checksum": _is_text,
    "correlation_id": _is_text,
    "priority": _is_priority,
    "cloud_init": _is_cloud_init,
    **dict.fromkeys(_FILES, _is_text),
}
FIELDS = tuple(_CHECKS)


def check_fields(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is wrong with each field alone: its name, and a message."""
    problems = []
    for name, value in fields.items():
        if name not in _CHECKS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(FIELDS)}"
            problems.append((name, f"unknown field {name!r}; {hint}"))
        elif message := _CHECKS[name](value):
            problems.append((name, f"{name} {message}; found {_shown(value)}"))
    return problems


def check_entry(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is wrong with an entry: the field, and a message."""
    problems = check_fields(fields)
    if "volume_name" not in fields:
        problems.append(("", "volume_name is missing"))
    if ("image" in fields) == ("image_url" in fields):
        words = "give image or image_url, not both" if "image" in fields else "image or image_url is missing"
        problems.append(("image", words))
    if "cloud_init" in fields and any(name in fields for name in _FILES):
        problems.append(("cloud_init", "give cloud_init or files of it, not both"))
    elif any(name in fields for name in _FILES) and "user_data_file" not in fields:
        problems.append((next(name for name in _FILES if name in fields), "user_data_file is missing"))
    return problems


def request_of(fields: Mapping[str, Any], host: str, base: Path) -> dict[str, Any]:
    """Return the body of the request for one host: its name stands for ``{host}``, except in cloud-init data.

    Files are relative to ``base``. Raises CliError if one cannot be read.
    """
    texts = with_host(fields, host)
    body = {name: value for name, value in texts.items() if name != "hosts" and name not in _FILES}
    files = {part: base / texts[name] for name, part in _FILES.items() if name in texts}
    if files:
        from provisioner.cli.cloud_init import cloud_init_field

        try:
            body["cloud_init"] = cloud_init_field(files)
        except click.UsageError as error:
            raise CliError(error.message, ExitStatus.USAGE) from error
    return body


def with_host(fields: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Return the fields with the name of a host in place of ``{host}`` in their texts."""
    return {name: value.replace("{host}", host) if isinstance(value, str) else value for name, value in fields.items()}


def _shown(value: object) -> str:
    """Return a value for a message; cloud-init data may hold secrets."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
