"""Server-sent events: lines in, events out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """An event: its kind such as ``job.completed``, its data, and its id, after which a stream can go on."""

    kind: str
    text: str
    event_id: str | None = None

    @property
    def data(self) -> Any:
        """The data; docs/operating.md has the kinds. Raises ValueError if it is no JSON."""
        import json  # the command line starts without it

        return json.loads(self.text)


class EventParser:
    """Puts events together from the lines of a stream."""

    def __init__(self) -> None:
        self._kind, self._text = "", ""
        self._id: str | None = None

    def feed(self, line: str) -> Event | None:
        """Take a line without its end; return the event that it completes."""
        name, _, value = line.partition(": ")
        if name == "event":
            self._kind = value
        elif name == "data":
            self._text = value
        elif name == "id":
            self._id = value
        elif not line and self._text:
            found = Event(self._kind, self._text, self._id)
            self._kind, self._text = "", ""
            return found
        return None
