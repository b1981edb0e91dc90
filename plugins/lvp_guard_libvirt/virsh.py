"""Runs ``virsh`` and translates its errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provisioner.contracts import run_tool
from provisioner.contracts.errors import TargetUnavailableError, ToolError

if TYPE_CHECKING:
    from lvp_guard_libvirt.settings import ConnectionSettings


class Virsh:
    """A virsh client for one connection; each call runs its own process."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings

    async def run_readonly(self, *words: str) -> str:
        """Return the output of a command on a read-only connection. Raises TargetUnavailableError."""
        return await self._run("--readonly", *words)

    async def run_readwrite(self, *words: str) -> str:
        """Return the output of a command on a read-write connection. Raises TargetUnavailableError."""
        return await self._run(*words)

    async def _run(self, *words: str) -> str:
        settings = self._settings
        argv = [settings.virsh, "--quiet", "--connect", settings.uri, *words]
        try:
            return (await run_tool(argv, timeout=settings.timeout)).stdout
        except ToolError as error:
            raise TargetUnavailableError(f"the call to libvirt at {settings.uri} failed: {error.message}") from error
