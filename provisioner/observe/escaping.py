"""Escape untrusted text for logs and terminals."""

from __future__ import annotations


def escape(text: str) -> str:
    """Return ``text`` with each control, bidirectional or unassigned character escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def escape_block(text: str) -> str:
    """Return several lines, such as a traceback, escaped and indented so that none looks like a log line."""
    return "\n".join(f"    {escape(line)}" for line in text.split("\n"))
