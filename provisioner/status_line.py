"""What ``systemctl status`` shows the service doing: an observer of jobs that tells the service manager."""

from __future__ import annotations

from provisioner import systemd
from provisioner.contracts import JobEvent, Observer


class StatusLine(Observer):
    """Counts jobs by what is said of them, and names the one that was heard of last."""

    def __init__(self) -> None:
        self._active: dict[str, JobEvent] = {}
        self._said = ""

    async def job_changed(self, event: JobEvent) -> None:
        if event.status in {"pending", "running"}:
            self._active[event.job_id] = event
        else:
            self._active.pop(event.job_id, None)
        words = self.words()
        if words != self._said:
            self._said = words
            systemd.notify(f"STATUS={words}")

    def words(self) -> str:
        """One line."""
        running = [event for event in self._active.values() if event.status == "running"]
        waiting = len(self._active) - len(running)
        if not self._active:
            return "Ready, no jobs"
        doing = ", ".join(f"{event.volume_name or 'an image'} {event.stage}" for event in running[-3:])
        return f"{len(running)} running, {waiting} waiting" + (f": {doing}" if doing else "")
