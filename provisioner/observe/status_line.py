"""The status line of ``systemctl status``, sent by an observer of jobs."""

from __future__ import annotations

from provisioner.contracts import JobEvent, Observer
from provisioner.linux import systemd
from provisioner.observe.escaping import escape

# Most jobs to keep. A full event queue can lose the end of a job, which must not be counted forever.
_MOST = 1000


class StatusLine(Observer):
    """Tracks job states for systemd's ``STATUS=`` and names the jobs that run."""

    def __init__(self) -> None:
        self._active: dict[str, JobEvent] = {}
        self._last_text = ""

    async def job_changed(self, event: JobEvent) -> None:
        if event.status in {"pending", "running"}:
            self._active[event.job_id] = event
            if len(self._active) > _MOST:
                del self._active[next(iter(self._active))]
        else:
            self._active.pop(event.job_id, None)
        text = self.text()
        if text != self._last_text:
            self._last_text = text
            systemd.notify(f"STATUS={text}")

    def text(self) -> str:
        """Return the status as one line, with names escaped."""
        running = [event for event in self._active.values() if event.status == "running"]
        waiting = len(self._active) - len(running)
        if not self._active:
            return "Ready, no jobs"
        doing = ", ".join(escape(f"{event.volume_name or 'an image'} {event.stage}") for event in running[-3:])
        return f"{len(running)} running, {waiting} waiting" + (f": {doing}" if doing else "")
