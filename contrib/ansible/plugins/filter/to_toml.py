# SPDX-License-Identifier: MIT
"""Writes the service's configuration, which the role has as a dictionary, as TOML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: to_toml
author: The libvirt-volume-provisioner developers (@libvirt-volume-provisioner)
version_added: 0.1.0
short_description: Write a dictionary as TOML
description: Writes a dictionary as TOML, one table for each dictionary in it.
options:
  _input:
    description: Dictionary of strings, numbers, booleans, lists and dictionaries.
    type: dict
    required: true
"""

EXAMPLES = r"""
toml: "{{ {'server': {'bind': ['0.0.0.0:8080']}} | lvp.provisioner.to_toml }}"
"""

RETURN = r"""
_value:
  description: The text.
  type: str
"""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(document):
    """Return the dictionary as TOML. Raises AnsibleFilterError for what TOML cannot express."""
    if not isinstance(document, Mapping):
        raise AnsibleFilterError("to_toml needs a dictionary, not %r" % (document,))
    return "\n".join(_table(document, [])).strip("\n") + "\n"


def _table(table, path):
    """Return the lines of a table: its own keys, then the tables in it."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = ["%s = %s" % (_key(key), _value(value)) for key, value in table.items() if key not in inner]
    if path and (lines or not inner):
        lines = ["", "[%s]" % ".".join(map(_key, path)), *lines]
    for key, value in inner.items():
        lines += _table(value, [*path, key])
    return lines


def _key(key):
    return str(key) if _BARE.fullmatch(str(key)) else _text(str(key))


def _text(text):
    # The escapes of JSON are those of TOML, which also wants one for DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _text(str(value))
    if isinstance(value, Mapping):
        return "{ %s }" % ", ".join("%s = %s" % (_key(key), _value(one)) for key, one in value.items())
    if isinstance(value, Sequence):
        return "[%s]" % ", ".join(map(_value, value))
    raise AnsibleFilterError("TOML cannot express %r" % (value,))


class FilterModule:
    """The filters of this file."""

    def filters(self):
        """Return them by name."""
        return {"to_toml": to_toml}
