"""Makes text from elsewhere harmless where people read it. Owns which characters never reach a terminal as they are."""

from __future__ import annotations


def escape(text: str) -> str:
    """Return ``text`` with an escape for each control, bidirectional or unassigned character."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def escape_block(text: str) -> str:
    """Several lines, such as a traceback: escaped, and indented so that none can pass for a log line of its own."""
    return "\n".join(f"    {escape(line)}" for line in text.split("\n"))
